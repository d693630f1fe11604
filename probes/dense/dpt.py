"""MMSegmentation's DPT head, of Ranftl, Bochkovskiy, Koltun, "Vision Transformers for Dense
Prediction", ICCV 2021: four maps are brought to four resolutions, fused from the deepest to the
shallowest with batch-normalised residual units, and enlarged bilinearly."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from mmcv.cnn import ConvModule
from mmengine.registry import MODELS
from mmseg.models.decode_heads import dpt_head
from torch import Tensor, nn


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
        return super().forward(inputs[self.in_index].split(self.map_channels, dim=1))

    def _transform_inputs(self, maps: Sequence[Tensor]) -> list[tuple[Tensor, Tensor | None]]:
        if self.reassemble_blocks.readout_type == "ignore":
            return [(each, None) for each in maps]
        halves = [each.chunk(2, dim=1) for each in maps]
        return [(patches, token[:, :, 0, 0]) for patches, token in halves]
