"""From the maps a backbone has to the maps a probe needs: a pyramid from one stride, or one stride
from several."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class LayerNorm2d(nn.LayerNorm):
    """LayerNorm over the channels of NCHW maps."""

    def forward(self, maps: Tensor) -> Tensor:
        return super().forward(maps.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class SimpleFeaturePyramid(nn.Module):
    """The simple feature pyramid of ViTDet: every level from the backbone's last map alone.
    Trainable, part of a probe.

    Li, Mao, Girshick and He, "Exploring Plain Vision Transformer Backbones for Object Detection",
    ECCV 2022, section 3. For ``stride`` 16: stride 4 by two 2×2 deconvolutions of stride 2 with
    norm and GELU between, 8 by one, 16 as it is, 32 by 2×2 max-pooling; each then goes through a
    1×1 and a 3×3 convolution, each with norm.

    Args:
        in_channels: channels of the last map.
        out_channels: channels of every level.
        stride: of the last map, in pixels; levels lie at the powers of two of it that are nearest
            to ``out_strides``: a stride of 14 gives 3.5, 7, 14 and 28 for 4, 8, 16 and 32.
        out_strides: nominal strides of the levels, fine to coarse.
        norm: channels → normalisation layer for NCHW maps; the paper's is LayerNorm.

    Attributes:
        strides: the true strides of the levels, in pixels.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        stride: int,
        out_strides: Sequence[int] = (4, 8, 16, 32),
        norm: Callable[[int], nn.Module] = LayerNorm2d,
    ) -> None:
        super().__init__()
        steps = [round(math.log2(target / stride)) for target in out_strides]
        self.strides: tuple[float, ...] = tuple(stride * 2**step for step in steps)
        self.levels = nn.ModuleList(_level(in_channels, out_channels, step, norm) for step in steps)

    def forward(self, last: Tensor) -> tuple[Tensor, ...]:
        """(N, in_channels, h, w) → one (N, out_channels, h · stride / strides[i], w · stride /
        strides[i]) for each i.

        Levels coarser than the map round down, as max-pooling does.
        """
        return tuple(level(last) for level in self.levels)


def _level(
    in_channels: int, out_channels: int, step: int, norm: Callable[[int], nn.Module]
) -> nn.Sequential:
    """One level, ``2 ** step`` times coarser than the map."""
    layers: list[nn.Module] = []
    channels = in_channels
    for i in range(-step):
        if i:
            layers += [norm(channels), nn.GELU()]
        half = max(channels // 2, 1)
        layers.append(nn.ConvTranspose2d(channels, half, 2, stride=2))
        channels = half
    layers += [nn.MaxPool2d(2, stride=2) for _ in range(step)]
    layers += [
        nn.Conv2d(channels, out_channels, 1, bias=False),
        norm(out_channels),
        nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False),
        norm(out_channels),
    ]
    return nn.Sequential(*layers)


def resize_concat(maps: Sequence[Tensor], strides: Sequence[float], stride: float) -> Tensor:
    """Bring maps of several strides to one and stack their channels: (N, Σ channels, H / stride, W
    / stride).

    Bilinear without corner alignment. The target size is that of the map at ``stride`` where there
    is one, else the first map's size times ``strides[0] / stride``, rounded.
    """
    if stride in strides:
        height, width = maps[list(strides).index(stride)].shape[-2:]
    else:
        height, width = (round(side * strides[0] / stride) for side in maps[0].shape[-2:])
    size = (height, width)
    resized = [
        each
        if each.shape[-2:] == size
        else F.interpolate(each, size=size, mode="bilinear", align_corners=False)
        for each in maps
    ]
    return torch.cat(resized, dim=1)
