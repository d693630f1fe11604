"""Configs of heads. Heads of mmseg's registry, and modules of plugins, are heads of the dense
probes too; such a head is run on maps without data before anything is trained."""

from __future__ import annotations

import functools
import inspect
import json
import traceback
import warnings
from collections.abc import Mapping, Sequence
from contextlib import suppress
from itertools import product
from pkgutil import resolve_name
from typing import Any

from probes.runner.bridge import isolated_rng  # first: it prepares mmseg

# isort: split
import torch
from mmengine.registry import DefaultScope
from mmseg.models.decode_heads.cascade_decode_head import BaseCascadeDecodeHead
from mmseg.models.decode_heads.decode_head import BaseDecodeHead
from mmseg.registry import MODELS
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from cliptex_common.errors import UserError, error_summary, suggest
from probes.dense.data import dense_sample
from probes.dense.decode_heads.base import SHIPPED, DenseHead, FeatureMaps
from probes.dense.decode_heads.losses import Regression, Segmentation
from probes.dense.tasks import DenseTask
from probes.registry import HEADS

LOSS_METHODS = ("loss", "predict", "loss_by_feat", "predict_by_feat")
LOSS_OPTIONS = ("loss_decode", "sampler")
OF_BACKBONE = ("in_channels", "in_index", "num_classes", "feature_strides")


def parse_head(head: Mapping[str, Any]) -> tuple[Any, dict[str, Any]]:
    """The class of a head, of a plugin or of mmseg's registry, and its options.

    Raises:
        UserError: no such head, or one that predicts no logits by itself.
    """
    name, options = head["type"], {key: value for key, value in head.items() if key != "type"}
    if name in HEADS and isinstance(HEADS[name].module, type):
        return HEADS[name].module, options
    classes = {
        key: each
        for key, each in MODELS.module_dict.items()
        if inspect.isclass(each) and each.__module__.startswith("mmseg.models.decode_heads.")
    }
    if name not in classes:
        raise UserError(f"mmseg has no head {name!r}; {suggest(name, classes)}")
    kind = classes[name]
    if not issubclass(kind, BaseDecodeHead) or issubclass(kind, BaseCascadeDecodeHead):
        raise UserError(
            f"{name} predicts masks, or refines the output of another head; choose one that"
            " predicts logits of each pixel"
        )
    return kind, options


def check_settings(head: Mapping[str, Any], task: DenseTask) -> None:
    """Raise ``UserError`` where the setting ``head`` fits no backbone and no dataset of a task."""
    kind, options = parse_head(head)
    reads_several(kind, options)
    if task.has_classes:
        return
    if has_own_loss(kind):
        raise UserError(f"head {head['type']} has a loss of classes: it is for segmentation")
    for name in LOSS_OPTIONS:
        if name in options:
            raise UserError(f"head.{name} is of segmentation; the loss of {task.name} is its own")


def has_own_loss(head: type[nn.Module]) -> bool:
    """Whether it is a head of mmseg that computes its losses or predictions in its own way."""
    return issubclass(head, BaseDecodeHead) and any(
        getattr(head, name) is not getattr(BaseDecodeHead, name) for name in LOSS_METHODS
    )


def reads_several(head: type[nn.Module], options: Mapping[str, Any]) -> bool:
    """Whether a head reads several maps.

    Raises:
        UserError: options that the head does not know, or lacks.
    """
    if not issubclass(head, BaseDecodeHead):
        return True
    selected: list[str | None] = []

    def record(self: Any, in_channels: Any, in_index: Any, transform: str | None) -> None:
        selected.append(transform)
        raise StopIteration

    recorder = type(head.__name__, (head,), {"_init_inputs": record})
    options = {"in_channels": 1, "num_classes": 2, **with_strides(head, (1,)), **options}
    try:
        recorder(**options)
    except StopIteration:
        return selected[0] is not None
    except Exception as error:
        raise UserError(
            f"head {head.__name__}: {summary(error)}; set its options by --set head.NAME=VALUE"
        ) from error
    raise UserError(f"head {head.__name__} does not say which maps it reads; mmseg's heads do")


def summary(error: Exception) -> str:
    """``error_summary``; the message alone of what a user can correct, and of an assertion without
    a message the line that failed."""
    if isinstance(error, UserError):
        return str(error)
    if str(error):
        return error_summary(error)
    line = traceback.extract_tb(error.__traceback__)[-1].line
    return f"{type(error).__name__}: {line}"


def with_strides(head: type[nn.Module], strides: Sequence[float]) -> dict[str, Any]:
    """The strides of the maps under the name by which a head takes them, if it does."""
    names = set(inspect.signature(head.__init__).parameters) & {"strides", "feature_strides"}
    return {name: list(strides) for name in names}


class OutputOffset(nn.Module):
    """A constant added to the outputs, at which a regressor begins."""

    bias: Tensor

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.register_buffer("bias", torch.zeros(channels))

    def forward(self, outputs: Tensor) -> Tensor:
        return outputs + self.bias[:, None, None]


class ModuleHead(BaseDecodeHead):
    """A head of mmseg, or any module from a list of maps to logits.

    Args:
        module: its config: ``type`` (see ``parse_head``) and options; those that follow from the
            maps and the number of outputs may be left out.
        in_channels, strides: of the maps.
        **kwargs: of mmseg's ``BaseDecodeHead``.
    """

    def __init__(
        self,
        module: Mapping[str, Any],
        in_channels: Sequence[int],
        strides: Sequence[float],
        **kwargs: Any,
    ) -> None:
        super().__init__(
            in_channels=in_channels,
            in_index=list(range(len(in_channels))),
            input_transform="multiple_select",
            channels=1,
            dropout_ratio=0,
            init_cfg=None,
            **kwargs,
        )
        self.conv_seg = OutputOffset(self.num_classes)
        kind, options = parse_head(module)
        if issubclass(kind, BaseDecodeHead):
            several = reads_several(kind, options)
            index = options.setdefault("in_index", list(range(len(in_channels))) if several else 0)
            strides = [strides[i] for i in (index if several else [index])]
            options = {
                "in_channels": [in_channels[i] for i in index] if several else in_channels[index],
                "num_classes": self.num_classes,
                "ignore_index": self.ignore_index,
                "align_corners": self.align_corners,
                "threshold": 0.0,  # of binary segmentation; mmseg warns without one
                **options,
            }
        else:
            shapes = {"in_channels": list(in_channels), "out_channels": self.num_classes}
            options = {**shapes, **options}
        self.module: Any = kind(**{**with_strides(kind, strides), **options})
        if has_own_loss(kind):
            self.loss, self.predict = self.module.loss, self.module.predict

    def forward(self, inputs: Sequence[Tensor]) -> Tensor:
        """Maps (N, C_i, h_i, w_i) → logits (N, outputs, h, w), of any resolution."""
        return self.conv_seg(self.module(list(inputs)))


_classes = {head.name: resolve_name(str(head.module)) for head in SHIPPED} | {"module": ModuleHead}
for (_name, _class), _loss in product(_classes.items(), (Segmentation, Regression)):
    _type = f"{_name}-{_loss.__name__.lower()}"  # linear-segmentation, linear-regression …
    MODELS.register_module(name=_type, module=type(_type, (_loss, _class), {}))


def head_config(
    head: DenseHead, settings: Any, maps: FeatureMaps, objective: Mapping[str, Any]
) -> dict[str, Any]:
    """Configs of the ``decode_head`` and, where it reads the maps concatenated, of the ``neck``.

    Args:
        settings: a ``DenseSettings``.
        objective: ``num_classes`` and the loss of a segmenter, or ``loss_decode`` with an
            objective's config.
    """
    outputs = "segmentation" if "num_classes" in objective else "regression"
    losses = {"align_corners": settings.align_corners, "loss_images": settings.loss_images}
    losses |= objective
    if head.options:
        name, reads_one = head.name, True
        options = {"in_channels": sum(maps.channels), "in_index": 0, **losses}
        options |= head.options(settings, maps)
    else:
        name, (kind, own) = "module", parse_head(settings.head)
        reads_one = not reads_several(kind, own) and "in_index" not in own
        if settings.feature_stride and not reads_one:
            raise UserError(
                f"feature_stride={settings.feature_stride} is of heads that read the maps"
                f" concatenated; {settings.head['type']} reads each at its own stride: set"
                " feature_stride=none"
            )
        if not has_own_loss(kind):
            losses |= {option: own.pop(option) for option in LOSS_OPTIONS if option in own}
        options = {
            **losses,
            "module": {"type": settings.head["type"], **own},
            "in_channels": [sum(maps.channels)] if reads_one else list(maps.channels),
            "strides": [maps.stride] if reads_one else list(maps.strides),
        }
    model: dict[str, Any] = {"decode_head": {"type": f"{name}-{outputs}", **options}}
    if reads_one or maps.index is not None:
        strides = {"strides": list(maps.strides), "stride": maps.stride}
        model["neck"] = {"type": "ResizeConcat", **strides, "index": maps.index}
    return model


@functools.lru_cache(maxsize=64)  # a task is checked several times
def try_head(text: str, batch: int, sizes: tuple[tuple[int, int], ...]) -> None:
    """Build a head, and run it on a training batch and on a test image.

    Args:
        text: config of a ``ModuleHead`` as JSON.
        batch: images of a training batch.
        sizes: (height, width) of training crops, then of a test image, as the backbone gets them.

    Raises:
        UserError: the head cannot be built, fails, or returns other shapes.
    """
    config = json.loads(text)
    channels, options = config["in_channels"], dict(config["module"])
    about = (
        f"head {options.pop('type')} with {options or 'its defaults'} on maps of"
        f" {', '.join(map(str, channels))} channels"
    )
    batch = min(batch, 2)  # normalisation over a batch needs two images; more change no shape
    with suppress(Exception), FakeTensorMode(allow_non_fake_inputs=True):
        return _run(config, batch, sizes)
    try:  # fake tensors have no values, which some heads read
        _run(config, batch, sizes)
    except Exception as error:
        decided = [f"head.{name}" for name in OF_BACKBONE if name in options]
        hint = f"; {', '.join(decided)}: leave it out, the backbone decides" if decided else ""
        raise UserError(f"{about}: {summary(error)}{hint}") from error


@torch.no_grad()
def _run(config: Mapping[str, Any], batch: int, sizes: Sequence[tuple[int, int]]) -> None:
    with (
        isolated_rng(),
        warnings.catch_warnings(action="ignore"),
        DefaultScope.overwrite_default_scope("mmseg"),
    ):
        head = MODELS.build(config)
        for is_training, images, size in zip((True, False), (batch, 1), sizes, strict=True):
            maps = [
                torch.zeros(images, channels, *(max(1, round(side / stride)) for side in size))
                for channels, stride in zip(config["in_channels"], config["strides"], strict=True)
            ]
            head.train(is_training)
            meta = {"img_shape": size, "pad_shape": size}
            if not has_own_loss(type(head.module)):
                outputs = head.module(maps)
            elif is_training:
                labels = torch.zeros(1, *size, dtype=torch.long)
                head.loss(maps, [dense_sample(meta, "gt_sem_seg", labels)] * images, {})
                continue
            else:
                outputs = head.predict(maps, [meta], {})
            shape = tuple(outputs.shape) if isinstance(outputs, Tensor) else type(outputs).__name__
            if len(shape) != 4 or shape[:2] != (images, head.num_classes):
                raise UserError(
                    f"it must return ({images}, {head.num_classes}, height, width), and returns"
                    f" {shape}"
                )
