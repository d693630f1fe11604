"""Heads of mmseg's registry, and modules of plugins, as heads of the dense probes."""

from __future__ import annotations

import inspect
import traceback
from collections.abc import Mapping, Sequence
from typing import Any

import probes.runner.bridge  # noqa: F401  before mmseg, which it prepares

# isort: split
import torch
from mmseg.models.decode_heads.cascade_decode_head import BaseCascadeDecodeHead
from mmseg.models.decode_heads.decode_head import BaseDecodeHead
from mmseg.registry import MODELS
from torch import Tensor, nn

from common.errors import UserError, error_summary, nearest
from probes.dense.decode_heads.base import FeatureMaps
from probes.dense.tasks import DenseTask
from probes.registry import HEADS

LOSS_METHODS = ("loss", "predict", "loss_by_feat", "predict_by_feat")
LOSS_OPTIONS = ("loss_decode", "sampler")


def find_class(name: str) -> Any:
    """The class of a head: of a plugin, or of mmseg's registry.

    Raises:
        UserError: no such head, or one that refines what another head predicts.
    """
    if name in HEADS and isinstance(HEADS[name].module, type):
        return HEADS[name].module
    registered = {
        key: each
        for key, each in MODELS.module_dict.items()
        if inspect.isclass(each) and each.__module__.startswith("mmseg.models.decode_heads.")
    }
    classes = {key: each for key, each in registered.items() if issubclass(each, BaseDecodeHead)}
    if name in registered and name not in classes:
        raise UserError(f"{name} predicts masks, not logits of each pixel; choose another head")
    if name not in classes:
        raise UserError(f"mmseg has no head {name!r}; {nearest(name, classes)}")
    if issubclass(classes[name], BaseCascadeDecodeHead):
        raise UserError(f"{name} refines the output of another head, so it cannot be one alone")
    return classes[name]


def check_settings(head: Mapping[str, Any], task: DenseTask) -> None:
    """Raise ``UserError`` where the setting ``head`` fits no backbone and no dataset of a task."""
    options = {name: value for name, value in head.items() if name != "type"}
    module = find_class(head["type"])
    input_transform(module, options)
    if task.has_classes:
        return
    if has_own_loss(module):
        raise UserError(f"head {head['type']} has a loss of classes: it is for segmentation")
    if losses := options.keys() & {*LOSS_OPTIONS}:
        raise UserError(
            f"head.{min(losses)} is of segmentation; the loss of {task.name} is its own"
        )


def has_own_loss(head: type[nn.Module]) -> bool:
    """Whether it is a head of mmseg that computes its losses or predictions in its own way."""
    return issubclass(head, BaseDecodeHead) and any(
        getattr(head, name) is not getattr(BaseDecodeHead, name) for name in LOSS_METHODS
    )


def input_transform(head: type[nn.Module], options: Mapping[str, Any]) -> str | None:
    """How a head reads the maps: ``multiple_select`` for several, ``resize_concat`` for several
    that it concatenates, None for one.

    Raises:
        UserError: options that the head does not know, or lacks.
    """
    if not issubclass(head, BaseDecodeHead):
        return "multiple_select"
    selected: list[str | None] = []

    def record(self: Any, in_channels: Any, in_index: Any, transform: str | None) -> None:
        selected.append(transform)
        raise StopIteration

    recorder = type(head.__name__, (head,), {"_init_inputs": record})
    options = {"in_channels": 1, "num_classes": 2, **with_strides(head, (1,)), **options}
    try:
        recorder(**options)
    except StopIteration:
        return selected[0]
    except Exception as error:
        raise UserError(
            f"head {head.__name__}: {summary(error)}; set its options by --set head.NAME=VALUE"
        ) from error
    raise UserError(f"head {head.__name__} does not say which maps it reads; mmseg's heads do")


def summary(error: Exception) -> str:
    """``error_summary``; of an assertion without a message the line that failed."""
    if str(error):
        return error_summary(error)
    line = traceback.extract_tb(error.__traceback__)[-1].line
    return f"{type(error).__name__}: {line}"


def with_strides(head: type[nn.Module], strides: Sequence[float]) -> dict[str, Any]:
    """The strides of the maps under the name by which a head takes them, if it does."""
    names = set(inspect.signature(head.__init__).parameters) & {"strides", "feature_strides"}
    return {name: list(strides) for name in names}


def module_config(
    head: Mapping[str, Any], maps: FeatureMaps, shared: Mapping[str, Any]
) -> tuple[bool, dict[str, Any]]:
    """Whether the maps come concatenated, and the arguments of ``ModuleHead``.

    Args:
        head: the setting ``head``.
        shared: arguments that do not depend on the head; its own losses replace theirs.
    """
    options = {name: value for name, value in head.items() if name != "type"}
    kind = find_class(head["type"])
    reads_one = input_transform(kind, options) is None and "in_index" not in options
    losses = {} if has_own_loss(kind) else {n: options.pop(n) for n in LOSS_OPTIONS if n in options}
    return reads_one, {
        **shared,
        **losses,
        "module": {"type": head["type"], **options},
        "in_channels": [sum(maps.channels)] if reads_one else list(maps.channels),
        "strides": [maps.stride] if reads_one else list(maps.strides),
    }


def build_module(
    config: Mapping[str, Any],
    channels: Sequence[int],
    strides: Sequence[float],
    **outputs: Any,
) -> nn.Module:
    """A head from its config.

    Args:
        channels, strides: of the maps.
        outputs: ``num_classes``, the number of outputs of a pixel, and other arguments of mmseg's
            heads.

    Raises:
        UserError: the config contradicts the maps or the outputs.
    """
    options = {name: value for name, value in config.items() if name != "type"}
    kind = find_class(config["type"])
    if issubclass(kind, BaseDecodeHead):
        several = input_transform(kind, options) is not None
        index = options.setdefault("in_index", list(range(len(channels))) if several else 0)
        if any(not -len(channels) <= i < len(channels) for i in (index if several else [index])):
            raise UserError(f"head.in_index={index}: the backbone gives {len(channels)} maps")
        strides = [strides[i] for i in index] if several else [strides[index]]
        in_channels = [channels[i] for i in index] if several else channels[index]
        fixed = {"in_channels": in_channels, "num_classes": outputs.pop("num_classes")}
        defaults = {**outputs, **with_strides(kind, strides)}
        if fixed["num_classes"] == 1:  # mmseg warns, though only binary segmentation uses it
            defaults["threshold"] = 0.0
    else:
        fixed = {"in_channels": list(channels), "out_channels": outputs["num_classes"]}
        defaults = with_strides(kind, strides)
    for name, value in fixed.items():
        if options.get(name, value) != value:
            raise UserError(
                f"head.{name}={options[name]} does not fit: backbone and dataset give {value};"
                " leave it out"
            )
    return kind(**{**defaults, **options, **fixed})


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
        module: its config, see ``find_class`` and ``build_module``.
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
        outputs = {
            "num_classes": self.num_classes,
            "ignore_index": self.ignore_index,
            "align_corners": self.align_corners,
        }
        self.module: Any = build_module(module, in_channels, strides, **outputs)

    def forward(self, inputs: Sequence[Tensor]) -> Tensor:
        """Maps (N, C_i, h_i, w_i) → logits (N, outputs, h, w), of any resolution."""
        return self.conv_seg(self.module(list(inputs)))

    def loss(self, inputs: Any, samples: Any, train_cfg: Any) -> Any:
        if has_own_loss(type(self.module)):
            return self.module.loss(inputs, samples, train_cfg)
        return super().loss(inputs, samples, train_cfg)

    def predict(self, inputs: Any, metas: Any, test_cfg: Any) -> Any:
        if has_own_loss(type(self.module)):
            return self.module.predict(inputs, metas, test_cfg)
        return super().predict(inputs, metas, test_cfg)
