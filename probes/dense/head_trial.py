"""Heads of mmseg's registry, and modules of plugins, are tried on maps without data before anything
is trained."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

import torch
from mmengine.registry import MODELS, DefaultScope
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from cliptex_common.errors import UserError
from cliptex_common.images import image_size
from probes.datasets.base import PreparedDataset
from probes.dense.config import complete_model
from probes.dense.data import dense_sample
from probes.dense.head_table import head_input, round_up
from probes.dense.heads import has_own_loss, head_class, summary
from probes.dense.settings import DenseSettings
from probes.train.sampling import isolated_rng

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
    with suppress(Exception), FakeTensorMode(allow_non_fake_inputs=True):
        return _run(config, inputs, batch, sizes)
    try:  # fake tensors have no values, which some heads read
        _run(config, inputs, batch, sizes)
    except Exception as error:
        options = {name: value for name, value in requested.items() if name != "type"}
        decided = [f"head.{name}" for name in OF_BACKBONE if name in options]
        hint = f"; {', '.join(decided)}: leave it out, the backbone decides" if decided else ""
        if batch == 1:
            hint += "; try batch_size=2: some layers need two images to train"
        raise UserError(
            f"head {requested['type']} with {options or 'its defaults'} on maps of"
            f" {', '.join(str(width) for width, _ in inputs)} channels: {summary(error)}{hint}"
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
