"""Two heads that fuse four feature maps from the deepest to the shallowest.

``DPTHead`` is MMSegmentation's, of Ranftl, Bochkovskiy, Koltun, "Vision Transformers for Dense
Prediction", ICCV 2021: maps are brought to four resolutions, fused with batch-normalised residual
units and enlarged bilinearly; the class token is not read. ``Probe3dHead`` is that of probe3d (El
Banani et al., "Probing the 3D Awareness of Visual Foundation Models", CVPR 2024;
``evals/models/probes.py`` of github.com/mbanani/probe3d), a simplification by its authors: all maps
have one resolution, nothing is normalised, and upsampling between the stages is by nearest
neighbours.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import probes.runner.bridge  # noqa: F401  before mmseg, which it prepares

# isort: split
import torch
import torch.nn.functional as F
from mmcv.cnn import ConvModule
from mmseg.models.decode_heads import dpt_head
from mmseg.models.decode_heads.decode_head import BaseDecodeHead
from torch import Tensor, nn


class DPTHead(dpt_head.DPTHead):
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
        return super().forward(inputs[self.in_index].split(self.map_channels, dim=1))

    def _transform_inputs(self, maps: Sequence[Tensor]) -> list[tuple[Tensor, Tensor | None]]:
        if self.reassemble_blocks.readout_type == "ignore":
            return [(each, None) for each in maps]
        halves = [each.chunk(2, dim=1) for each in maps]
        return [(patches, token[:, :, 0, 0]) for patches, token in halves]


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
        self.before = nn.ModuleList(
            Residual(channels) for _ in self.map_channels[:-1]
        )  # the deepest has nothing to meet
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
