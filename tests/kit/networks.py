"""A network for tests that need any."""

from __future__ import annotations

import torch
from torch import nn


class Patches(nn.Module):
    """One map of ``channels`` at a stride; the weights follow from the seed."""

    def __init__(self, seed: int = 0, channels: int = 6, stride: int = 8) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.conv = nn.Conv2d(3, channels, stride, stride)

    def forward(self, images):
        return self.conv(images).relu()
