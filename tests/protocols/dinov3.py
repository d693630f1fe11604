"""DINOv3's linear probes of ADE20K and NYU Depth v2 and its label propagation, by its code and by
this suite.

The source needs omegaconf 2.3, pandas and torchmetrics beside this suite's packages.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests.protocols import dinov3_depth, dinov3_segmentation, dinov3_video

TOLERANCE = {
    "initial weights": 2e-4,  # of random values
    "shares": 1e-6,  # of random values
    "from image to score": 0.01,  # scores are rounded
}
PARTS = {
    "segmentation/linear": dinov3_segmentation,
    "depth/linear": dinov3_depth,
    "video/label-propagation": dinov3_video,
}


def source(checkout: Path) -> dict[str, dict[str, Any]]:
    return {probe: part.source(checkout) for probe, part in PARTS.items()}


def suite() -> dict[str, dict[str, Any]]:
    return {probe: part.suite() for probe, part in PARTS.items()}
