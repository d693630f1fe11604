"""The head of probe3d (El Banani et al., "Probing the 3D Awareness of Visual Foundation Models",
CVPR 2024; ``evals/models/probes.py`` of github.com/mbanani/probe3d), its authors' simplification of
DPT: all maps have one resolution, nothing is normalised, and upsampling between the stages is by
nearest neighbours."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch.nn.functional as F
from mmengine.registry import MODELS
from mmseg.models.decode_heads.decode_head import BaseDecodeHead
from torch import Tensor, nn


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
        maps = self._transform_inputs(inputs).split(self.map_channels, dim=1)
        maps = [
            F.interpolate(layer(x), scale_factor=2)
            for layer, x in zip(self.project, maps, strict=True)
        ]
        fused = self.after[-1](maps[-1])
        for level in reversed(range(len(maps) - 1)):
            fused = self.after[level](self.before[level](maps[level]) + fused)
        fused = self.mix(F.interpolate(fused, scale_factor=4)).relu()
        return F.interpolate(self.cls_seg(fused), scale_factor=2)
