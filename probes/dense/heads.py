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
from probes.dense.tasks import DenseTask
from probes.registry import HEADS

LOSS_OPTIONS = ("loss_decode", "sampler")
LOSS_METHODS = ("loss", "predict", "loss_by_feat", "predict_by_feat")
# heads of mmseg that read several maps; others do where ``in_index`` is a list
SEVERAL = {
    *("ANNHead", "EncHead", "FPNHead", "LightHamHead", "SegformerHead", "SETRMLAHead", "UPerHead"),
}
# options of heads that follow from the maps, besides ``in_channels`` and ``in_index``
OF_MAPS = {
    "FPNHead": "feature_strides",
    "MultiWidthDPTHead": "map_channels",
    "Probe3dHead": "map_channels",
}
# options of every head of mmseg, which those of a plugin's module stand beside
SHARED = ("align_corners", "loss_decode", "num_classes", "ignore_index", "threshold", "sampler")


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
    """Raise ``UserError`` where the setting ``head`` fits no dataset of a task."""
    kind = head_class(head["type"])
    if task.has_classes:
        return
    if has_own_loss(kind):
        raise UserError(f"head {head['type']} has a loss of classes: it is for segmentation")
    for name in LOSS_OPTIONS:
        if name in head:
            raise UserError(f"head.{name} is of segmentation; the loss of {task.name} is its own")


def has_own_loss(head: type[nn.Module]) -> bool:
    """Whether it is a head of mmseg that computes its losses or predictions in its own way."""
    return issubclass(head, BaseDecodeHead) and any(
        getattr(head, name) is not getattr(BaseDecodeHead, name) for name in LOSS_METHODS
    )


def reads_several(head: type[nn.Module], options: Mapping[str, Any]) -> bool:
    """Whether a head with these options reads several maps."""
    if not issubclass(head, BaseDecodeHead) or options.get("input_transform"):
        return True
    is_list = isinstance(options.get("in_index"), list | tuple)
    return is_list or not SEVERAL.isdisjoint(each.__name__ for each in head.__mro__)


def summary(error: Exception) -> str:
    """``error_summary``; the message alone of what a user can correct, and of an assertion without
    a message the line that failed."""
    if isinstance(error, UserError):
        return str(error)
    if str(error):
        return error_summary(error)
    line = traceback.extract_tb(error.__traceback__)[-1].line
    return f"{type(error).__name__}: {line}"


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
        self.conv_seg = nn.Identity()  # the module has a last layer of its own
        self.register_buffer("start", torch.zeros(self.num_classes))
        options = dict(module)
        kind = head_class(options.pop("type"))
        if "strides" in inspect.signature(kind.__init__).parameters:
            options.setdefault("strides", list(strides))
        shapes = {"in_channels": list(in_channels), "out_channels": self.num_classes}
        self.module: Any = kind(**{**shapes, **options})

    def forward(self, inputs: Sequence[Tensor]) -> Tensor:
        """Maps (N, C_i, h_i, w_i) → logits (N, outputs, h, w), of any resolution."""
        return self.module(list(inputs)) + self.start[:, None, None]


def complete_head(model: Any, maps: HeadInput) -> list[tuple[int, float]]:
    """Complete ``decode_head`` and ``neck`` of a model's config with what follows from the maps,
    but for what is stated.

    A head behind a neck reads all maps concatenated; without one, each at its own stride, or that
    of its ``in_index``. Heads of several maps, and of the one of ``in_index``, have no neck.

    Returns:
        channels and stride of each map that the head gets.

    Raises:
        UserError: there is no such head or map.
    """
    head = model.decode_head
    kind = head_class(head.type)
    several = reads_several(kind, head)
    inputs = list(zip(maps.channels, maps.strides, strict=True))
    if "neck" in model:
        model.neck.update(strides=list(maps.strides), stride=maps.stride, index=maps.index)
        if (several or "in_index" in head) and maps.index is None:
            del model.neck  # the head takes the maps as they are
    if not issubclass(kind, BaseDecodeHead):
        options = {name: head.pop(name) for name in [*head] if name not in SHARED}
        head.update(type="ModuleHead", module=options, strides=list(maps.strides))
        head.in_channels = list(maps.channels)
        return inputs
    if head.get("dilations", ()) is None:
        head.dilations = aspp_dilations(min(maps.crop), maps.stride)
    if several:
        index: Any = head.get("in_index", list(range(len(inputs))))
        channels, strides = zip(*(inputs[each] for each in index), strict=True)
        derived = {"in_channels": list(channels), "in_index": index}
    elif "neck" in model:
        inputs = [(sum(maps.channels), maps.stride)]
        channels, strides = maps.channels, (maps.stride,)
        derived = {"in_channels": sum(maps.channels), "in_index": 0}
    else:
        index = head.get("in_index", -1)
        if index >= len(inputs):
            raise UserError(
                f"head {head.type} reads map {index} of {len(inputs)}; head.in_index: leave"
                " it out, the backbone decides"
            )
        channels, strides = zip(inputs[index], strict=True)
        derived = {"in_channels": inputs[index][0]}
    of_maps = {"feature_strides": list(strides), "map_channels": list(channels)}
    names = [OF_MAPS[each.__name__] for each in kind.__mro__ if each.__name__ in OF_MAPS]
    for name, value in (derived | {name: of_maps[name] for name in names}).items():
        head.setdefault(name, value)
    return inputs
