"""Decode heads in mmseg's registry, beside mmseg's own: the linear probe, DPT, probe3d's DPT, and
modules of plugins. What follows from the maps of a backbone is added to their configs.
"""

from __future__ import annotations

import inspect
import traceback
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from mmcv.cnn import ConvModule
from mmengine.registry import DefaultScope
from mmseg.models.decode_heads import dpt_head
from mmseg.models.decode_heads.cascade_decode_head import BaseCascadeDecodeHead
from mmseg.models.decode_heads.decode_head import BaseDecodeHead
from mmseg.models.decode_heads.uper_head import UPerHead
from mmseg.models.necks import Feature2Pyramid
from mmseg.registry import MODELS
from torch import Tensor, nn

from cliptex_common.device import is_accelerator
from cliptex_common.errors import UserError, error_summary, suggest
from probes.dense.settings import HeadInput, aspp_dilations
from probes.dense.tasks import DenseTask
from probes.registry import HEADS
from probes.upsamplers.upsample import UpsampledMaps

LOSS_OPTIONS = ("loss_decode", "sampler")
LOSS_METHODS = ("loss", "predict", "loss_by_feat", "predict_by_feat")
# heads of mmseg that read several maps; others do where ``in_index`` is a list
SEVERAL = {
    *("ANNHead", "EncHead", "FPNHead", "LightHamHead", "SegformerHead", "SETRMLAHead", "UPerHead"),
}
# options of heads that follow from the maps, besides ``in_channels`` and ``in_index``
OF_MAPS = {
    "FPNHead": "feature_strides",
    "PyramidUPerHead": "feature_strides",
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


def describe_error(error: Exception) -> str:
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
        # of a task's ``first_output``, in place of the bias of a last layer
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


@MODELS.register_module()
class LinearHead(BaseDecodeHead):
    """The linear probe: batch normalisation, then one 1×1 convolution.

    Input (N, in_channels, H, W), output (N, out_channels, H, W).

    Of ``UpsampledMaps`` it upsamples its outputs where that gives the same: it does not where
    training normalises or drops channels.

    Args:
        dropout_first: dropout before the normalisation, not after it.
        norm: whether there is the normalisation.
    """

    def __init__(self, dropout_first: bool = False, norm: bool = True, **kwargs: Any) -> None:
        super().__init__(**{**kwargs, "channels": kwargs["in_channels"]})
        self.norm = nn.BatchNorm2d(self.in_channels) if norm else nn.Identity()
        self.has_norm, self.dropout_first = norm, dropout_first

    def forward(self, inputs: tuple[Tensor | UpsampledMaps, ...]) -> Tensor:
        if isinstance(inputs[0], UpsampledMaps):
            if not self.training or (not self.has_norm and self.dropout is None):
                return self._project_and_upsample(inputs[0])
            inputs = (inputs[0].features,)
        maps = self._transform_inputs(inputs)
        if self.dropout is not None and not self.dropout_first:
            return self.cls_seg(self.norm(maps))  # mmseg's: dropout, then ``conv_seg``
        if self.dropout is not None:
            maps = self.dropout(maps)
        # two ways to the same: where it pays, norm and convolution are one product
        on_cpu = not is_accelerator(maps.device)  # a GPU's time is not in this head
        if self.has_norm and on_cpu and self.training and not maps.requires_grad:
            return self._normalise_and_project(maps)
        return self.conv_seg(self.norm(maps))

    def _project_and_upsample(self, maps: UpsampledMaps) -> Tensor:
        """``conv_seg(norm(maps.features))`` with the statistics of training."""
        weight, bias = self.conv_seg.weight.flatten(1), self.conv_seg.bias
        if not self.has_norm:
            return maps.project(weight, bias, weight.new_zeros(weight.shape[1]))
        norm: Any = self.norm
        scale = norm.weight * (norm.running_var + norm.eps).rsqrt()
        return maps.project(weight * scale, bias + weight @ norm.bias, norm.running_mean)

    def _normalise_and_project(self, maps: Tensor) -> Tensor:
        """``conv_seg(norm(maps))`` of constant maps, with the normalisation's scale and bias in
        those of the convolution: equal up to float32's rounding, and three times as fast, because
        no gradient passes through arrays as large as the maps."""
        norm: Any = self.norm
        weight = self.conv_seg.weight.flatten(1)
        norm.num_batches_tracked += 1
        mean, variance = torch.batch_norm_update_stats(
            maps, norm.running_mean, norm.running_var, norm.momentum
        )
        scaled = weight * (norm.weight * (variance + norm.eps).rsqrt())
        bias = self.conv_seg.bias + weight @ norm.bias
        # centred first: a bias that undoes a large mean would lose digits
        return F.conv2d(maps - mean[:, None, None], scaled[:, :, None, None], bias)


@MODELS.register_module()
class MultiWidthDPTHead(dpt_head.DPTHead):
    """MMSegmentation's DPT head; its 1×1 convolutions take maps of any widths, so that stages of a
    CNN can be fused too.

    Input: the maps concatenated, (N, Σ map_channels, h, w); output (N, out_channels, ⌈h / 2⌉ · 16,
        ⌈w / 2⌉ · 16).

    Args:
        map_channels: channels of each of the four maps, shallow to deep.
        channels: width of the fusion.
        widths: of the reassembled maps; empty for 3/8, 3/4, 3/2 and 3 times ``channels``, as in
            MMSegmentation, where that is 256.
        readout_type: ``ignore``; or ``project``, where the second half of a map's channels is its
            class token, the same at each position.
        **kwargs: of mmseg's ``DPTHead``; without its ``norm_cfg`` the convolutions have biases.
    """

    def __init__(
        self,
        map_channels: Sequence[int],
        channels: int,
        widths: Sequence[int] = (),
        readout_type: str = "ignore",
        **kwargs: Any,
    ) -> None:
        widths = widths or [max(1, channels * eighths // 8) for eighths in (3, 6, 12, 24)]
        super().__init__(
            embed_dims=map_channels[0], post_process_channels=widths, channels=channels, **kwargs
        )
        self.map_channels, blocks = tuple(map_channels), self.reassemble_blocks
        if readout_type == "project":
            map_channels = [width // 2 for width in map_channels]
            blocks.readout_type = readout_type
            blocks.readout_projects = nn.ModuleList(
                nn.Sequential(nn.Linear(2 * width, width), nn.GELU()) for width in map_channels
            )
        blocks.projects = nn.ModuleList(
            ConvModule(width, out, 1, act_cfg=None)
            for width, out in zip(map_channels, widths, strict=True)
        )
        if kwargs.get("norm_cfg", True) is None:
            for module in self.modules():
                if isinstance(module, dpt_head.PreActResidualConvUnit):
                    for unit in (module.conv1, module.conv2):
                        unit.conv.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, inputs: tuple[Tensor, ...]) -> Tensor:
        # the neck gives one tensor, as to any dense head
        return super().forward(inputs[self.in_index].split(self.map_channels, dim=1))

    def _transform_inputs(self, maps: Sequence[Tensor]) -> list[tuple[Tensor, Tensor | None]]:
        if self.reassemble_blocks.readout_type == "ignore":
            return [(each, None) for each in maps]
        halves = [each.chunk(2, dim=1) for each in maps]
        return [(patches, token[:, :, 0, 0]) for patches, token in halves]


@MODELS.register_module()
class PyramidUPerHead(UPerHead):
    """MMSegmentation's UPerNet. Four maps of one stride, of a plain ViT, become a pyramid first, of
    4, 2, 1 and 1/2 times their size, as in its configs of BEiT and MAE.

    Input: maps (N, C_i, h_i, w_i), shallow to deep; output (N, out_channels, h, w), of the finest.

    Args:
        feature_strides: of the maps.
        **kwargs: of mmseg's ``UPerHead``.
    """

    def __init__(self, feature_strides: Sequence[float], **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.pyramid: nn.Module = nn.Identity()
        if len({*feature_strides}) == 1:
            width = self.in_channels[0]
            self.pyramid = Feature2Pyramid(width, norm_cfg=self.norm_cfg)

    def forward(self, inputs: Sequence[Tensor]) -> Tensor:
        return super().forward(self.pyramid(inputs))


class Residual(nn.Module):
    """Two 3×3 convolutions, each with a ReLU after it, around which the input goes too; shapes
    stay."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(channels, channels, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(channels, channels, 3, padding=1),
            nn.ReLU(),
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + self.layers(x)


@MODELS.register_module()
class Probe3dHead(BaseDecodeHead):
    """Four maps → 1×1 convolutions to ``channels`` → twice the size → fused, the deepest first:
    each of the others passes a residual unit, what is deeper is added, and the sum passes another →
    four times the size → 3×3 convolution, ReLU, 3×3 convolution onto the outputs → twice the size.

    Input: the maps concatenated, (N, Σ map_channels, h, w); output (N, out_channels, 16 h, 16 w).

    Args:
        map_channels: channels of each of the four maps, shallow to deep.
        channels: width of the head.
        **kwargs: of mmseg's ``BaseDecodeHead``.
    """

    def __init__(self, map_channels: Sequence[int], channels: int, **kwargs: Any) -> None:
        super().__init__(channels=channels, **kwargs)
        self.map_channels = tuple(map_channels)
        self.project = nn.ModuleList(nn.Conv2d(width, channels, 1) for width in map_channels)
        # the deepest has nothing to meet
        self.before = nn.ModuleList(Residual(channels) for _ in self.map_channels[:-1])
        self.after = nn.ModuleList(Residual(channels) for _ in self.map_channels)
        self.mix = nn.Conv2d(channels, channels, 3, padding=1)
        self.conv_seg = nn.Conv2d(channels, self.out_channels, 3, padding=1)

    def forward(self, inputs: tuple[Tensor, ...]) -> Tensor:
        # the neck gives one tensor, as to any dense head
        maps = self._transform_inputs(inputs).split(self.map_channels, dim=1)
        maps = [self._enlarge(layer(x), 2) for layer, x in zip(self.project, maps, strict=True)]
        fused = self.after[-1](maps[-1])
        for level in reversed(range(len(maps) - 1)):
            fused = self.after[level](self.before[level](maps[level]) + fused)
        fused = self.mix(self._enlarge(fused, 4)).relu()
        return self._enlarge(self.cls_seg(fused), 2)

    def _enlarge(self, x: Tensor, factor: int) -> Tensor:
        """By nearest neighbours; with ``align_corners`` bilinear, as in its code since fbe0cd2."""
        if not self.align_corners:
            return F.interpolate(x, scale_factor=factor)
        return F.interpolate(x, scale_factor=factor, mode="bilinear", align_corners=True)
