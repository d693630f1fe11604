"""Inputs of Pixio's records, the same for its code and for this suite."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from tests.protocols.dense import CHANNELS, IMAGES, STEPS, depths, labels, random

PATCHES, BLOCKS, DEVICES = 6, 12, 8
LEVELS = (2, 5, 8, 11)
WIDTHS = (3, 6, 12, 24)
LABELS = [labels(IMAGES, 24, 24, seed=40 + step) for step in range(STEPS)]
DEPTHS = [depths(IMAGES, 24, 24, seed=60 + step) for step in range(STEPS)]
RANGE = [0.0, 0.0005, 0.001, 5.0, 10.0, 12.0]  # metres
TALL, WIDE = (20, 9), (9, 20)
FRAME = (480, 640)
# each place of a frame, in steps of five columns
POSITIONS = (np.arange(480)[:, None] * 128 + np.arange(640)[None] // 5).astype(np.uint16)
TARGETS = labels(1, 300, 420, seed=70)


def tokens(step: int) -> list[tuple[Tensor, Tensor]]:
    """(eight class tokens, patch tokens) of each block."""
    width = CHANNELS // 2
    return [
        (
            random(IMAGES, 8, width, seed=200 + 10 * step + block),
            random(IMAGES, PATCHES**2, width, seed=400 + 10 * step + block),
        )
        for block in range(BLOCKS)
    ]


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(7)
