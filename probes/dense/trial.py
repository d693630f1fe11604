"""What somebody else wrote is tried before hours of training: heads of mmseg's registry and modules
of plugins on maps without data, families of dense tasks on zeros when they are registered.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

import numpy as np
import torch
from mmengine.registry import MODELS, DefaultScope
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from cliptex_common.device import isolated_rng
from cliptex_common.errors import UserError
from cliptex_common.images import image_size
from probes.datasets.base import PreparedDataset
from probes.dense.config import complete_model
from probes.dense.heads import describe_error, has_own_loss, head_class
from probes.dense.losses import TaskObjective
from probes.dense.pipelines import dense_sample
from probes.dense.segmentation import Segmentation
from probes.dense.settings import DenseSettings, head_input, round_up
from probes.dense.task import DenseTask

OF_BACKBONE = ("in_channels", "in_index", "num_classes", "feature_strides")


def try_model(probe: Any, settings: Any, data: PreparedDataset, backbone: Any) -> None:
    """Check that a head fits, and run one that this package does not know on maps without data.

    Args:
        backbone: see ``head_input``.

    Raises:
        UserError: dataset, settings or backbone do not fit the head.
    """
    config = probe.read_config()
    inputs = complete_model(config, probe, settings, data, backbone)
    if not probe.is_shipped:
        crop = head_input(settings, backbone).crop
        # without samples where the data are not checked yet
        test = test_size(settings, data, backbone.divisor) if data.samples else crop
        head = config.model.decode_head.to_dict()
        requested = getattr(settings, "head", {"type": head["type"]})
        try_head(head, requested, inputs, settings.batch_size, (crop, test))


def test_size(settings: DenseSettings, data: PreparedDataset, divisor: int) -> tuple[int, int]:
    """(height, width) of the first test image, or of a window of it, as the backbone gets it."""
    if settings.slide:
        return (round_up(settings.slide[0], divisor),) * 2
    width, height = image_size(data.root / data.samples["val"][0].image)
    factor = settings.size / min(width, height) if settings.size else 1
    return round_up(round(factor * height), divisor), round_up(round(factor * width), divisor)


def try_head(
    config: Mapping[str, Any],
    requested: Mapping[str, Any],
    inputs: Sequence[tuple[int, float]],
    batch: int,
    sizes: Sequence[tuple[int, int]],
) -> None:
    """Build a head, and run it on a training batch and on a test image.

    Args:
        config, requested: of the head, and the options of it that the user gave.
        inputs: channels and stride of each map that it gets.
        batch: images of a training batch.
        sizes: (height, width) of training crops, then of a test image, as the backbone gets them.

    Raises:
        UserError: the head cannot be built, fails, or returns other shapes.
    """
    batch = min(batch, 2)  # normalisation over a batch needs two images; more change no shape
    # on fake tensors first, which cost nothing; they have no values, which some heads read
    with suppress(Exception), FakeTensorMode(allow_non_fake_inputs=True):
        return _run(config, inputs, batch, sizes)
    try:
        _run(config, inputs, batch, sizes)
    except Exception as error:
        options = {name: value for name, value in requested.items() if name != "type"}
        decided = [f"head.{name}" for name in OF_BACKBONE if name in options]
        hint = f"; {', '.join(decided)}: leave it out, the backbone decides" if decided else ""
        if batch == 1:
            hint += "; try batch_size=2: some layers need two images to train"
        if options:
            hint += "; --set TASK.head.KEY=VALUE sets what is of one head alone"
        raise UserError(
            f"head {requested['type']} with {options or 'its defaults'} on maps of"
            f" {', '.join(str(width) for width, _ in inputs)} channels:"
            f" {describe_error(error)}{hint}"
        ) from error


@torch.no_grad()
def _run(
    config: Mapping[str, Any],
    inputs: Sequence[tuple[int, float]],
    batch: int,
    sizes: Sequence[tuple[int, int]],
) -> None:
    has_loss = has_own_loss(head_class(config["type"]))
    with (
        isolated_rng(),
        warnings.catch_warnings(action="ignore"),
        DefaultScope.overwrite_default_scope("mmseg"),
    ):
        head = MODELS.build(config)
        module = getattr(head, "module", head)  # of a plugin
        for is_training, images, size in zip((True, False), (batch, 1), sizes, strict=True):
            maps = [
                torch.zeros(images, channels, *(max(1, round(side / stride)) for side in size))
                for channels, stride in inputs
            ]
            head.train(is_training)
            meta = {"img_shape": size, "pad_shape": size}
            if not has_loss:
                outputs = module(maps)
            elif is_training:
                labels = torch.zeros(1, *size, dtype=torch.long)
                head.loss(maps, [dense_sample(meta, "gt_sem_seg", labels)] * images, {})
                continue
            else:
                outputs = head.predict(maps, [meta], {})
            shape = tuple(outputs.shape) if isinstance(outputs, Tensor) else type(outputs).__name__
            if len(shape) != 4 or shape[:2] != (images, head.out_channels):
                raise UserError(
                    f"it must return ({images}, {head.out_channels}, height, width), and returns"
                    f" {shape}"
                )


SIDE = 64


def try_task(task: DenseTask) -> None:
    """Check the attributes of a task, and compute loss, prediction, score and metrics of zeros.

    Raises:
        UserError: something is missing or does not fit.
        Exception: what the task's own methods raise.
    """
    if not re.fullmatch(r"[\w-]+", task.name):
        raise UserError(f"dense task {task.name!r}: a name has letters, digits and hyphens")
    if not task.metrics:
        raise UserError(f"dense task {task.name!r} needs metrics")
    if task.has_classes != isinstance(task, Segmentation):
        raise UserError(f"dense task {task.name!r}: one with classes is a subclass of Segmentation")
    if isinstance(task, Segmentation) and task.field != Segmentation.field:
        raise UserError(f"dense task {task.name!r}: the field of classes is {Segmentation.field!r}")
    kind = type(task)
    overridden = {name for name in ("objective", "evaluator") if _overrides(kind, name)}
    needed = [
        name for name, by in (("loss", "objective"), ("score", "evaluator")) if by not in overridden
    ]
    if missing := [name for name in needed if not _overrides(kind, name)]:
        raise UserError(f"dense task {task.name!r} has no {' and no '.join(missing)}")
    target = torch.zeros(2, task.channels, SIDE, SIDE)
    prediction = target
    if "objective" not in overridden:
        if not _overrides(kind, "batch_loss"):
            loss = task.loss(
                task.activate(torch.zeros(2, task.outputs, SIDE, SIDE)), target.squeeze(1)
            )
            if isinstance(loss, Tensor):
                raise UserError(
                    f"dense task {task.name!r}: loss returns one tensor; return two, the sum over"
                    " the pixels with ground truth, and their number"
                )
        objective = TaskObjective(task)
        raw = torch.zeros(2, task.outputs, SIDE, SIDE, requires_grad=True)
        objective(raw, target).backward()
        prediction = objective.decode(raw.detach())
        if prediction.shape != target.shape:
            raise UserError(
                f"dense task {task.name!r}: predict gives {tuple(prediction.shape[1:])}, and the"
                f" ground truth is {tuple(target.shape[1:])}"
            )
    if "evaluator" not in overridden:
        scores = [task.score(*pair) for pair in zip(prediction, target, strict=True)]
        arrays = {name: np.stack([each[name].numpy() for each in scores]) for name in scores[0]}
        summary = task.summary(arrays, np.ones((1, 2)))
        if missing := [name for name in task.metrics if name not in summary]:
            raise UserError(f"dense task {task.name!r}: summary gives no {', '.join(missing)}")


def _overrides(kind: type[DenseTask], name: str) -> bool:
    return getattr(kind, name) is not getattr(DenseTask, name)
