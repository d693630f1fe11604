"""The one bridge to MMSegmentation and MMDetection: importing it makes our parts known to both.

A config with ``custom_imports = dict(imports=['probes.runner.bridge'])`` can name
``FrozenBackbone``, ``SimpleFeaturePyramid`` and ``ResizeConcat`` as types under either library's
scope, and runs with plain mmengine.
"""

from __future__ import annotations

import io
import math
import random
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.registry import MODELS
from torch import Tensor, nn

import backbones
from backbones.base import Backbone
from backbones.pyramid import LayerNorm2d, SimpleFeaturePyramid, resize_concat
from common.errors import UserError
from common.files import content_key
from probes.runner import ops
from probes.runner.shared_parts import SharedPart

ops.install()  # before mmdet, whose import asks mmcv for its operators
with redirect_stdout(io.StringIO()):  # both print that an optional package is absent
    import mmdet.datasets
    import mmdet.engine
    import mmdet.evaluation
    import mmdet.models
    import mmdet.registry
    import mmseg.datasets
    import mmseg.engine
    import mmseg.evaluation
    import mmseg.models
    import mmseg.registry


def install() -> None:
    """Make our parts known to mmseg and mmdet. Importing this module does it; calling it merely
    says so."""
    ops.install()


def in_both_scopes(name: str) -> Callable[[type[nn.Module]], type[nn.Module]]:
    """Register a module as ``name`` for mmengine, ``mmdet.name`` and ``mmseg.name``."""

    def register(module: type[nn.Module]) -> type[nn.Module]:
        for registry in (MODELS, mmdet.registry.MODELS, mmseg.registry.MODELS):
            registry.register_module(name=name, module=module)
        return module

    return register


# Several tasks of one run probe the same backbone: it is built once. Two, so that comparing does
# not thrash.
_SHARED: OrderedDict[str, Backbone] = OrderedDict()
_SHARED_MOST = 2


def share(config: Mapping[str, Any], backbone: Backbone) -> None:
    """Let every ``FrozenBackbone(**config)`` of this process use ``backbone`` instead of building
    it again."""
    _SHARED[_share_key(config)] = backbone
    _SHARED.move_to_end(_share_key(config))
    while len(_SHARED) > _SHARED_MOST:
        _SHARED.popitem(last=False)


def shared(config: Mapping[str, Any]) -> Backbone:
    """The backbone that ``backbones.create(**config)`` makes, built at most once while it stays
    among the last two."""
    if _share_key(config) not in _SHARED:
        with isolated_rng():  # whether it has to be built must not change what is drawn after it
            share(config, backbones.create(**config))
    _SHARED.move_to_end(_share_key(config))
    return _SHARED[_share_key(config)]


def _share_key(config: Mapping[str, Any]) -> str:
    """The arguments, without those left at nothing, and the state of the weights' file."""
    given = {name: value for name, value in config.items() if value not in (None, False)}
    if isinstance(weights := given.get("weights"), str | Path) and Path(weights).is_file():
        status = Path(weights).stat()
        given["weights"] = [str(Path(weights).resolve()), status.st_size, status.st_mtime_ns]
    return content_key(given)


def seed_all(seed: int) -> None:
    """Seed the generators of python, numpy and torch, on all devices in use, with ``seed`` (32
    bits).

    As ``torch.manual_seed``, which for a GPU that is not in use formats a traceback each time:
    several for an iteration.
    """
    random.seed(seed)
    np.random.seed(seed)
    if torch.cuda.is_initialized():
        torch.manual_seed(seed)
    else:
        torch.default_generator.manual_seed(seed)


@contextmanager
def isolated_rng(seed: int | None = None) -> Iterator[None]:
    """Put the generators of python, numpy and torch (CPU) back as they were at the end; seeded with
    ``seed`` within."""
    before = random.getstate(), np.random.get_state(), torch.get_rng_state()
    try:
        if seed is not None:
            random.seed(seed)
            np.random.seed(seed % 2**32)
            torch.default_generator.manual_seed(seed)
        yield
    finally:
        random.setstate(before[0])
        np.random.set_state(before[1])
        torch.set_rng_state(before[2])


@in_both_scopes("FrozenBackbone")
class FrozenBackbone(SharedPart):
    """A backbone of the registry as a part of an MMSeg or MMDet model: no gradient, no statistics,
    nothing to save.

    It stands outside the module tree, so that the model's ``state_dict`` (and so a probe's
    checkpoint), its parameters, its ``train()`` and its initialisation do not reach it; only moving
    to a device does.

    Args:
        precision: ``fp32``, or ``bf16`` to run it under autocast; the maps are float32 either way.
        out_indices: which of the backbone's maps to return, in this order; None for all.
        rounded: ``fp16`` to round the maps to it, as keeping them would.
        **create: arguments of ``backbones.create`` (``name``, ``weights``, ``seed`` …).

    Raises:
        UserError: unknown precision or map, or whatever ``backbones.create`` finds wrong.
    """

    def __init__(
        self,
        *,
        precision: str = "fp32",
        out_indices: Sequence[int] | None = None,
        rounded: str | None = None,
        **create: Any,
    ) -> None:
        super().__init__()
        if precision not in ("fp32", "bf16"):
            raise UserError(f"precision {precision!r} is not known; use fp32 or bf16")
        self.precision, self.rounded = precision, rounded
        self._frozen = (shared(create),)  # a tuple: nn.Module does not look into it
        maps = len(self.backbone.channels)
        self.out_indices = tuple(range(maps) if out_indices is None else out_indices)
        if not all(-maps <= index < maps for index in self.out_indices):
            raise UserError(
                f"backbone {self.backbone.name!r} has {maps} feature maps; no map"
                f" {self.out_indices}"
            )

    @property
    def backbone(self) -> Backbone:
        return self._frozen[0]

    @property
    def signature(self) -> Hashable:
        return id(self.backbone), super().signature

    @torch.no_grad()
    def compute(self, images: Tensor) -> tuple[Tensor, ...]:
        """(N, 3, H, W) normalised RGB → float32 maps (N, channels[i], H / strides[i], W /
        strides[i]).

        Raises:
            UserError: H or W is not a multiple of the backbone's divisor (the data preprocessor
                pads to it).
        """
        divisor = self.backbone.divisor
        if images.shape[-2] % divisor or images.shape[-1] % divisor:
            raise UserError(
                f"backbone {self.backbone.name!r} takes heights and widths that are multiples of"
                f" {divisor}, not {tuple(images.shape[-2:])}; set pad_size_divisor (mmdet) or"
                " size_divisor (mmseg)"
            )
        assert not self.backbone.training
        if (
            len(self.backbone.strides) > 1
        ):  # no plain ViT: convolutions are half as quick again on channels-last images
            images = images.contiguous(memory_format=torch.channels_last)
        # not left to the caller: heads may be under autocast where the backbone is to be exact
        with torch.autocast(images.device.type, torch.bfloat16, enabled=self.precision == "bf16"):
            maps = self.backbone(images)
        chosen = [
            maps[index].half() if self.rounded == "fp16" else maps[index]
            for index in self.out_indices
        ]
        return tuple(one.float().contiguous() for one in chosen)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> FrozenBackbone:
        self.backbone._apply(fn)
        super()._apply(fn, recurse)
        return self

    def extra_repr(self) -> str:
        return f"{self.backbone.name}, {self.precision}, maps {self.out_indices}"


@in_both_scopes("SimpleFeaturePyramid")
class SimpleFeaturePyramidNeck(nn.Module):
    """``backbones.pyramid.SimpleFeaturePyramid`` as a neck: a pyramid from the last map of a plain
    ViT. Trained.

    Args:
        in_channels, out_channels, stride, out_strides: as there.
        norm: ``LN`` (the paper's) or ``GN`` (in ``groups_of`` groups).
        num_outs: levels in all; those beyond ``out_strides`` take every second value of the one
            before, as FPN's do.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        stride: int,
        out_strides: Sequence[int] = (4, 8, 16, 32),
        norm: str = "LN",
        num_outs: int | None = None,
    ) -> None:
        super().__init__()
        if norm not in ("LN", "GN"):
            raise UserError(f"norm {norm!r} is not known; use LN or GN")
        layer: Callable[[int], nn.Module] = LayerNorm2d if norm == "LN" else _group_norm
        self.pyramid = SimpleFeaturePyramid(
            in_channels, out_channels, stride, tuple(out_strides), layer
        )
        self.extra = (num_outs or len(out_strides)) - len(out_strides)

    def forward(self, maps: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Maps of the backbone, of which the last is used → ``num_outs`` maps (N, out_channels, H /
        s, W / s)."""
        levels = list(self.pyramid(maps[-1]))
        for _ in range(self.extra):
            levels.append(levels[-1][..., ::2, ::2])
        return tuple(levels)


def groups_of(channels: int) -> int:
    """Groups to normalise ``channels`` in: up to 32, of 8 channels or more (a map can be a single
    cell)."""
    return math.gcd(32, channels, max(channels // 8, 1))


def _group_norm(channels: int) -> nn.GroupNorm:
    return nn.GroupNorm(groups_of(channels), channels)


@in_both_scopes("ResizeConcat")
class ResizeConcat(SharedPart):
    """Every map resized to one size (bilinear) and concatenated: the input of a linear dense probe.
    No parameters.

    Args:
        strides: stride of each incoming map, in pixels.
        stride: stride of the result; None for the finest of ``strides``.
    """

    def __init__(self, strides: Sequence[float], stride: float | None = None) -> None:
        super().__init__()
        self.strides = tuple(strides)
        self.stride = stride or min(self.strides)

    def compute(self, maps: Sequence[Tensor]) -> tuple[Tensor]:
        """Maps (N, C_i, H / strides[i], W / strides[i]) → one (N, ΣC_i, H / stride, W / stride), in
        a tuple."""
        return (resize_concat(maps, self.strides, self.stride),)
