"""Decode heads for the maps of a backbone: what follows from the maps is added to their configs."""

from __future__ import annotations

import inspect
import traceback
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from mmengine.registry import DefaultScope
from mmseg.models.decode_heads.cascade_decode_head import BaseCascadeDecodeHead
from mmseg.models.decode_heads.decode_head import BaseDecodeHead
from mmseg.registry import MODELS
from torch import Tensor, nn

from cliptex_common.errors import UserError, error_summary, suggest
from probes.dense.head_table import HeadInput, aspp_dilations
from probes.dense.losses import has_own_loss
from probes.dense.tasks import DenseTask
from probes.registry import HEADS

LOSS_OPTIONS = ("loss_decode", "sampler")


def head_class(name: str) -> Any:
    """The class of a head, of a plugin or of mmseg's registry.

    Raises:
        UserError: no such head, or one that predicts no logits by itself.
    """
    if name in HEADS and HEADS[name].module:
        return HEADS[name].module
    with DefaultScope.overwrite_default_scope("mmseg"):
        kind: Any = MODELS.get(name)
    is_head = inspect.isclass(kind) and issubclass(kind, BaseDecodeHead)
    if is_head and not issubclass(kind, BaseCascadeDecodeHead):
        return kind
    names = {
        key
        for key, each in MODELS.module_dict.items()
        if inspect.isclass(each) and each.__module__.startswith("mmseg.models.decode_heads.")
    }
    if name not in names:
        raise UserError(f"mmseg has no head {name!r}; {suggest(name, names)}")
    raise UserError(
        f"{name} predicts masks, or refines the output of another head; choose one that predicts"
        " logits of each pixel"
    )


def check_settings(head: Mapping[str, Any], task: DenseTask) -> None:
    """Raise ``UserError`` where the setting ``head`` fits no backbone and no dataset of a task."""
    kind = head_class(head["type"])
    reads_several(kind, head)
    if task.has_classes:
        return
    if has_own_loss(kind):
        raise UserError(f"head {head['type']} has a loss of classes: it is for segmentation")
    for name in LOSS_OPTIONS:
        if name in head:
            raise UserError(f"head.{name} is of segmentation; the loss of {task.name} is its own")


def reads_several(head: type[nn.Module], options: Mapping[str, Any]) -> bool:
    """Whether a head reads several maps.

    Raises:
        UserError: options that the head does not know, or lacks.
    """
    if not issubclass(head, BaseDecodeHead):
        return True
    selected: list[str | None] = []

    # which maps a head reads is only in what its constructor hands to this method of mmseg's
    def record(self: Any, in_channels: Any, in_index: Any, transform: str | None) -> None:
        selected.append(transform)
        raise StopIteration

    recorder = type(head.__name__, (head,), {"_init_inputs": record})
    options = {"in_channels": 1, "num_classes": 2, **of_maps(head, (1,), (1,)), **options}
    options.pop("type", None)
    try:
        recorder(**options)
    except StopIteration:
        return selected[0] is not None
    except Exception as error:
        raise UserError(
            f"head {head.__name__}: {summary(error)}; set its options by --set head.NAME=VALUE, of"
            " one task alone by --set TASK.head.NAME=VALUE"
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


def of_maps(
    head: type[nn.Module], channels: Sequence[int], strides: Sequence[float]
) -> dict[str, Any]:
    """Channels and strides of each map, under the names by which a head takes them, if it does."""
    values = {"map_channels": channels, "strides": strides, "feature_strides": strides}
    names = inspect.signature(head.__init__).parameters.keys() & values.keys()
    return {name: list(values[name]) for name in names}


class OutputOffset(nn.Module):
    """A constant added to the outputs, at which a regressor begins."""

    bias: Tensor

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.register_buffer("bias", torch.zeros(channels))

    def forward(self, outputs: Tensor) -> Tensor:
        return outputs + self.bias[:, None, None]


@MODELS.register_module()
class ModuleHead(BaseDecodeHead):
    """A module of a plugin, from a list of maps to logits, as a decode head.

    Args:
        module: ``type``, its name as a head, and options.
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
        options = dict(module)
        kind = head_class(options.pop("type"))
        shapes = {"in_channels": list(in_channels), "out_channels": self.num_classes}
        self.module: Any = kind(**{**of_maps(kind, in_channels, strides), **shapes, **options})

    def forward(self, inputs: Sequence[Tensor]) -> Tensor:
        """Maps (N, C_i, h_i, w_i) → logits (N, outputs, h, w), of any resolution."""
        return self.conv_seg(self.module(list(inputs)))


def complete_head(
    model: Any, requested: Mapping[str, Any], maps: HeadInput
) -> list[tuple[int, float]]:
    """Complete ``decode_head`` and ``neck`` of a model's config with what follows from the maps.

    A head behind a neck reads all maps concatenated; without one, each at its own stride, or that
    of its ``in_index``.

    Args:
        requested: the setting ``head``.

    Returns:
        channels and stride of each map that the head gets.

    Raises:
        UserError: there is no such head, or it does not know its options.
    """
    head = model.decode_head
    for name, value in requested.items():
        head[name] = value  # ``update`` of a config would merge the losses
    kind = head_class(head.type)
    several = reads_several(kind, requested) if requested else "neck" not in model
    inputs = list(zip(maps.channels, maps.strides, strict=True))
    if "neck" in model:
        model.neck.update(strides=list(maps.strides), stride=maps.stride, index=maps.index)
        if (several or "in_index" in requested) and maps.index is None:
            del model.neck  # the head takes the maps as they are
    if requested and has_own_loss(kind) and "loss_decode" not in requested:
        del head["loss_decode"]
    if not issubclass(kind, BaseDecodeHead):
        options = {name: head.pop(name) for name in requested}
        head.update(type="ModuleHead", module=options, strides=list(maps.strides))
        head.in_channels = list(maps.channels)
        return inputs
    if "dilations" in head and not requested:
        head.dilations = aspp_dilations(min(maps.crop), maps.stride, head.dilations)
    derived: dict[str, Any]
    if "neck" in model and not several:
        inputs = [(sum(maps.channels), maps.stride)]
        derived = {"in_channels": sum(maps.channels), "in_index": 0}
        derived |= of_maps(kind, maps.channels, [maps.stride])
    elif several:
        indices = head.get("in_index", list(range(len(inputs))))
        channels, strides = zip(*(inputs[index] for index in indices), strict=True)
        derived = {"in_channels": list(channels), "in_index": indices}
        derived |= of_maps(kind, channels, strides)
    else:
        if head.in_index >= len(inputs):
            raise UserError(
                f"head {head.type} reads map {head.in_index} of {len(inputs)}; head.in_index: leave"
                " it out, the backbone decides"
            )
        channel, stride = inputs[head.in_index]
        derived = {"in_channels": channel, **of_maps(kind, [channel], [stride])}
    head.update({name: value for name, value in derived.items() if name not in requested})
    return inputs
