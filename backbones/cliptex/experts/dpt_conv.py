"""DPT's decoder over a convolutional encoder, as MiDaS v2.1 small has it (EfficientNet-Lite; Ranftl et al., TPAMI 2022).

Quick to train, because the encoder can start from ImageNet weights. Neck and head are transformers' own.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import DPTConfig
from transformers.models.dpt.modeling_dpt import DPTDepthEstimationHead, DPTNeck

from backbones.cliptex.experts.unet import timm_encoder

STRIDES = (4, 8, 16, 32)


@dataclass(frozen=True)
class DepthOutput:
    """As transformers' models return it: (N, H, W)."""

    predicted_depth: Tensor


class ConvDPT(nn.Module):
    """A timm encoder's maps at strides 4, 8, 16 and 32 into DPT's fusion blocks and depth head.

    Attributes:
        config: the ``DPTConfig`` of neck and head.
        mean, std: statistics of the encoder's input.
    """

    def __init__(self, encoder: str, *, pretrained: bool, fusion: int) -> None:
        super().__init__()
        self.encoder, self.mean, self.std = timm_encoder(encoder, pretrained)
        found = dict(zip(self.encoder.feature_info.reduction(), self.encoder.feature_info.channels(), strict=True))
        self.places = [list(found).index(stride) for stride in STRIDES]
        self.config = DPTConfig(
            neck_hidden_sizes=[found[stride] for stride in STRIDES],
            fusion_hidden_size=fusion,
            patch_size=max(STRIDES),
            readout_type="ignore",
            reassemble_factors=[1, 1, 1, 1],
        )
        self.neck = DPTNeck(self.config)
        self.neck.reassemble_stage = None  # as for every hierarchical encoder: its maps are maps already
        self.head = DPTDepthEstimationHead(self.config)

    def forward(self, pixel_values: Tensor) -> DepthOutput:
        """Normalised RGB (N, 3, H, W), sides multiples of 32 → relative inverse depth (N, H, W)."""
        maps: Any = self.encoder(pixel_values.contiguous(memory_format=torch.channels_last))
        return DepthOutput(self.head(self.neck([maps[place] for place in self.places])))
