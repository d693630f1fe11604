"""A frozen or tuned backbone, and what brings its maps to a head, as modules of MMSegmentation and
MMDetection: importing this registers them with mmengine, whose registries are the parents of both.

A config with ``custom_imports = dict(imports=['probes.train.frozen_backbone'])`` can name
``FrozenBackbone``, ``TunedBackbone``, ``FrozenPart``, ``SimpleFeaturePyramid`` and ``ResizeConcat``
as types under either library's scope, and runs with plain mmengine.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any
from weakref import WeakValueDictionary

import torch
from mmengine.optim import DefaultOptimWrapperConstructor
from mmengine.registry import MODELS, OPTIM_WRAPPER_CONSTRUCTORS
from torch import Tensor, nn

import backbones
from backbones.backbone import Backbone, SimpleFeaturePyramid, in_memory_format, resize_concat
from backbones.tuning import Cut, Tuning
from cliptex_common.device import isolated_rng
from cliptex_common.errors import UserError
from cliptex_common.files import content_key
from probes.features.store import DTYPES
from probes.upsamplers.upsample import Upsampler

Maps = tuple[Tensor, ...]
# the last backbone, by its config, while something uses it: a config can only name a backbone, and
# building it again would load its weights again
_shared: WeakValueDictionary[str, Backbone] = WeakValueDictionary()


def share(config: Mapping[str, Any], backbone: Backbone) -> None:
    """Let every ``FrozenBackbone(**config)`` use ``backbone``, until another one is shared."""
    _shared.clear()
    _shared[content_key(config)] = backbone


def _build(config: Mapping[str, Any]) -> Backbone:
    """The shared backbone if it has this config, else a new one, which is shared from now on."""
    backbone = _shared.get(content_key(config))
    if backbone is None:
        with isolated_rng():  # building one must not change the random numbers that follow
            backbone = backbones.create(**config)
        share(config, backbone)
    return backbone


_outputs: dict[Any, tuple[Any, Maps]] | None = None  # key → (inputs, output), within one_batch


@contextmanager
def one_batch() -> Iterator[None]:
    """Within the block, modules with ``computed_once`` and one ``memo_key`` compute an input once,
    so that the heads of a task group share one pass through the backbone."""
    global _outputs
    _outputs = {}
    try:
        yield
    finally:
        _outputs = None


def computed_once(forward: Callable[[Any, Any], Maps]) -> Callable[[Any, Any], Maps]:
    """Memoize the ``forward`` of a module without weights within ``one_batch``, by the module's
    type, its ``memo_key`` and the memory of its inputs. Outputs must not be changed in place."""

    @functools.wraps(forward)
    def memoized(self: Any, inputs: Tensor | Sequence[Tensor]) -> Maps:
        if _outputs is None:
            return forward(self, inputs)
        tensors = (inputs,) if isinstance(inputs, Tensor) else tuple(inputs)
        memory = ((each.data_ptr(), each.shape, each.stride(), each.dtype) for each in tensors)
        key = (type(self), self.memo_key, *memory)
        if key not in _outputs:  # the inputs are kept, so that nothing else takes their memory
            _outputs[key] = tensors, forward(self, inputs)
        return _outputs[key][1]

    return memoized


@MODELS.register_module()
class FrozenBackbone(nn.Module):
    """A backbone of the registry as a module of an MMSeg or MMDet model: no gradient, no
    statistics, nothing to save.

    It stands outside the module tree, so that the model's ``state_dict`` (and a probe's
    checkpoint), its parameters, its ``train()`` and its initialisation do not reach it; only moving
    to a device does.

    Args:
        precision: ``fp32``, or ``bf16`` to run it under autocast; the maps are float32 either way.
        out_indices: which of the backbone's maps to return, in this order; None for all.
        rounded: precision of a feature store, ``fp16`` or ``bf16``, to round the maps to.
        class_token: append a layer's class token to the channels of its map, at each position.
        upsampler: options of an ``Upsampler`` that makes one map of them, which is returned; none
            to return them as they are.
        **create: arguments of ``backbones.create`` (``name``, ``weights``, ``seed`` …).

    Attributes:
        levels: channels and stride of each map that is returned, without class tokens.

    Raises:
        UserError: from ``backbones.create`` and ``Upsampler``.
    """

    def __init__(
        self,
        *,
        precision: str = "fp32",
        out_indices: Sequence[int] | None = None,
        rounded: str | None = None,
        class_token: bool = False,
        upsampler: Mapping[str, Any] | None = None,
        **create: Any,
    ) -> None:
        super().__init__()
        self.class_token, self.precision, self.rounded = class_token, precision, rounded
        self._backbone = (_build(create),)  # a tuple: nn.Module does not look into it
        every = range(len(self.backbone.channels))
        self.out_indices = tuple(every if out_indices is None else out_indices)
        options = tuple((upsampler or {}).items())
        maps = self.out_indices, class_token
        self.memo_key = id(self.backbone), precision, rounded, maps, options
        levels = list(zip(self.backbone.channels, self.backbone.strides, strict=True))
        self.levels: list[tuple[int, float]] = [levels[index] for index in self.out_indices]
        self._upsampler: tuple[Upsampler, ...] = ()  # at most one; a tuple for the same reason
        if upsampler:
            with isolated_rng():
                self._upsampler = (Upsampler(self.backbone, **upsampler),)
            self.levels = [(sum(width for width, _ in self.levels), upsampler["stride"])]

    @property
    def backbone(self) -> Backbone:
        return self._backbone[0]

    @computed_once
    @torch.no_grad()
    def forward(self, images: Tensor | Maps) -> Maps:
        """See ``maps``."""
        return self.maps(images)

    def maps(self, images: Tensor | Maps) -> Maps:
        """(N, 3, H, W) normalised RGB → float32 maps (N, channels[i], H / strides[i], W /
        strides[i]). Maps that were computed before stay as they are, in float32. Of a ``deferred``
        upsampler ``UpsampledMaps``, in a tuple.

        Raises:
            UserError: H or W is not a multiple of the backbone's divisor (the data preprocessor
                pads to it).
        """
        if not isinstance(images, Tensor):
            return tuple(each.float() for each in images)
        divisor = self.backbone.divisor
        if images.shape[-2] % divisor or images.shape[-1] % divisor:
            raise UserError(
                f"backbone {self.backbone.name!r} takes heights and widths that are multiples of"
                f" {divisor}, not {tuple(images.shape[-2:])}; set pad_size_divisor (mmdet) or"
                " size_divisor (mmseg)"
            )
        selected = [] if self._upsampler else self._encode(images)
        for upsampler in self._upsampler:  # none, or one
            with torch.autocast(images.device.type, enabled=False):
                upsampled = upsampler(self._encode, images)
            if not isinstance(upsampled, Tensor):
                return (upsampled,)
            selected = [upsampled]
        if self.rounded:
            selected = [each.to(DTYPES[self.rounded]) for each in selected]
        return tuple(each.float().contiguous() for each in selected)

    def _encode(self, images: Tensor, backbone: Backbone | None = None) -> list[Tensor]:
        backbone = backbone or self.backbone
        images = in_memory_format(images, backbone)
        # set either way: the heads may run under autocast where the backbone must be exact
        with torch.autocast(images.device.type, torch.bfloat16, enabled=self.precision == "bf16"):
            if self.class_token:
                maps: Sequence[Tensor] = [
                    torch.cat([each, token[:, :, None, None].expand_as(each)], dim=1)
                    for token, each in backbone.encode_layers(images)
                ]
            else:
                maps = backbone(images)
        return [maps[index] for index in self.out_indices]

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> FrozenBackbone:
        for module in (self.backbone, *self._upsampler):
            module._apply(fn)
        super()._apply(fn, recurse)
        return self


@MODELS.register_module()
class TunedBackbone(FrozenBackbone):
    """A copy of a backbone of which some weights train with the head: they alone are its parameters
    and its state. The shared frozen backbone is not changed.

    Args:
        tune, drop_path, checkpointing: as of ``Tuning``.
        size: (height, width) in pixels of training images as the backbone gets them; None where
            they differ.
        **frozen: as of ``FrozenBackbone``.
    """

    def __init__(
        self,
        *,
        tune: str,
        size: Sequence[int] | None = None,
        drop_path: float = 0.0,
        checkpointing: bool = False,
        **frozen: Any,
    ) -> None:
        super().__init__(**frozen)
        backbone = self.backbone
        height, width = size or backbone.fixed_size or backbone.data.size
        if size is None and not backbone.fixed_size:
            height += backbone.divisor  # none of its own, see ``Tuning``
        self._tuning = (
            Tuning(
                backbone,
                tune,
                lambda copy, images: self._encode(images, copy),
                (height, width),
                drop_path=drop_path,
                checkpointing=checkpointing,
            ),
        )
        self._backbone = (self.tuning.backbone,)
        self._register_trained()

    @property
    def tuning(self) -> Tuning:
        return self._tuning[0]

    @property
    def cut(self) -> Cut:
        """See ``Tuning.cut``; it changes no random number."""
        with isolated_rng():
            return self.tuning.cut

    def forward(self, images: Tensor | Maps) -> Maps:
        """See ``FrozenBackbone.maps``; instead of images it takes what a ``FrozenPart`` gives."""
        with ExitStack() as stack:
            stack.enter_context(self.tuning.computing())
            if not isinstance(images, Tensor):
                *recorded, empty = images
                images = stack.enter_context(self.cut.replaying(recorded, empty.shape[-2:]))
            return self.maps(images)

    def train(self, mode: bool = True) -> TunedBackbone:
        self.tuning.train(mode)
        return super().train(mode)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> TunedBackbone:
        self.backbone._apply(fn)
        self._register_trained()
        return self

    def _register_trained(self) -> None:
        self.tuning.refresh()
        named = self.tuning.trained.items()  # names of parameters have no dots
        self.trained = nn.ParameterDict({name.replace(".", "/"): each for name, each in named})


@MODELS.register_module()
class FrozenPart(TunedBackbone):
    """What a ``TunedBackbone`` of ``blocks:N`` computes before its first weight that trains, as
    features to be stored; see ``Cut``. The last of them is empty: its shape tells the images' size.

    Attributes:
        levels: as if each output were a map of about the same number of values.
    """

    def __init__(self, **tuned: Any) -> None:
        super().__init__(**tuned)
        stride, size = self.backbone.divisor, self.tuning.size
        outputs = [self.cut.examples(size)[path][0] for path in self.cut.names]
        cells = math.prod(side // stride for side in size)
        levels = [(math.ceil(output.numel() / cells), stride) for output in outputs]
        self.levels = [*levels, (0, stride)]

    @torch.no_grad()
    def forward(self, images: Any) -> Maps:
        """(N, 3, H, W) → float32 outputs (N, …), then one (N, 0, H, W)."""
        return *(output.float() for output in self.cut.record(images)), images[:, :0]


@OPTIM_WRAPPER_CONSTRUCTORS.register_module()
class TunedConstructor(DefaultOptimWrapperConstructor):
    """mmengine's, with the groups of a ``TunedBackbone`` by ``Tuning.groups``: ``backbone_lr`` and
    ``layer_decay`` of ``paramwise_cfg``."""

    def add_params(
        self, params: list[dict], module: nn.Module, prefix: str = "", is_dcn_module: Any = None
    ) -> None:
        if isinstance(module, TunedBackbone):
            rate, decay = self.paramwise_cfg["backbone_lr"], self.paramwise_cfg["layer_decay"]
            params += module.tuning.groups(rate, self.base_wd or 0.0, decay)
        else:
            super().add_params(params, module, prefix, is_dcn_module)


def tune_config(config: Any, backbone: Any, settings: Any, size: Sequence[int] | None) -> None:
    """Let the config of a probe train the ``FrozenBackbone`` whose config is ``backbone``, where
    its settings (``TuneSettings``) say so, at the first of its rates. Images are then encoded each
    time, unless ``cut_encoder`` gives what is stored of them.

    Args:
        size: as of ``TunedBackbone``.
    """
    if not settings.is_tuned:
        return
    backbone.update(
        type="TunedBackbone",
        tune=settings.tune,
        size=size,
        drop_path=settings.drop_path,
        checkpointing=settings.checkpointing,
    )
    wrapper = config.optim_wrapper
    rates = {"backbone_lr": settings.backbone_rates[0], "layer_decay": settings.layer_decay}
    wrapper.constructor = "TunedConstructor"
    wrapper.paramwise_cfg = {**wrapper.get("paramwise_cfg", {}), **rates}


def cut_encoder(encoder: Mapping[str, Any]) -> dict[str, Any]:
    """The ``encoder_config`` of training images for a ``TunedBackbone`` of ``blocks:N``: what it
    computes before its first weight that trains is stored in float32, so that it changes no number
    but by the order of sums in batches of other sizes."""
    return {**encoder, "backbone": {**encoder["backbone"], "type": "FrozenPart"}, "dtype": "fp32"}


@MODELS.register_module("SimpleFeaturePyramid")
class SimpleFeaturePyramidNeck(nn.Module):
    """``backbones.backbone.SimpleFeaturePyramid``, normalised in ``groups_of`` groups, as a trained
    neck on the last map of a plain ViT.

    Args:
        in_channels, out_channels, stride, out_strides: as there.
        num_outs: number of levels; those beyond ``out_strides`` take every second value of the
            level before, as FPN's do.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        stride: int,
        out_strides: Sequence[int],
        num_outs: int,
    ) -> None:
        super().__init__()
        self.pyramid = SimpleFeaturePyramid(
            in_channels,
            out_channels,
            stride,
            tuple(out_strides),
            lambda channels: nn.GroupNorm(groups_of(channels), channels),
        )
        self.extra = num_outs - len(out_strides)

    def forward(self, maps: Sequence[Tensor]) -> Maps:
        """The backbone's maps, of which the last is used → ``num_outs`` maps (N, out_channels, H /
        s, W / s)."""
        levels = list(self.pyramid(maps[-1]))
        for _ in range(self.extra):
            levels.append(levels[-1][..., ::2, ::2])
        return tuple(levels)


def groups_of(channels: int) -> int:
    """Groups to normalise ``channels`` in: up to 32, of 8 channels or more (a map can be a single
    cell)."""
    return math.gcd(32, channels, max(channels // 8, 1))


@MODELS.register_module()
class ResizeConcat(nn.Module):
    """Resize every map to one size (bilinear) and concatenate them: the input of a dense head.

    Args:
        strides: stride of each incoming map, in pixels.
        stride: stride of the result; None for the finest of ``strides``.
        index: the only map to read, which has ``strides``; None for all. So heads on different
            layers share one pass of the backbone.
    """

    def __init__(
        self, strides: Sequence[float], stride: float | None = None, index: int | None = None
    ) -> None:
        super().__init__()
        self.memo_key = tuple(strides), stride or min(strides), index

    @computed_once
    def forward(self, maps: Sequence[Tensor]) -> Maps:
        """Maps (N, C_i, H / strides[i], W / strides[i]) → one (N, ΣC_i, H / stride, W / stride), in
        a tuple."""
        strides, stride, index = self.memo_key
        read = maps if index is None else [maps[index]]
        return (resize_concat(read, strides, stride),)
