"""DeepLabv3's head (Chen et al., "Rethinking Atrous Convolution for Semantic Image Segmentation",
2017)."""

from __future__ import annotations

from typing import Any

import probes.runner.bridge  # noqa: F401  before mmseg, which it prepares

# isort: split
from mmseg.models.decode_heads import ASPPHead

from probes.dense.decode_heads.base import FeatureMaps, convolutional


class DeepLabV3Head(ASPPHead):
    """mmseg's, with dilations that follow from the size of the maps."""

    @staticmethod
    def options(settings: Any, maps: FeatureMaps) -> dict[str, Any]:
        return {**convolutional(settings), "dilations": aspp_dilations(min(maps.crop), maps.stride)}


def aspp_dilations(size: int, stride: float) -> tuple[int, int, int, int]:
    """Dilation rates of DeepLabv3 for feature maps of ``size / stride``.

    Chen et al. 2017 use (1, 12, 24, 36) on 64×64 maps (512 px at stride 8). A rate beyond the map
    only sees padding, so the rates keep their share of the map's side at other sizes: 12/64, 24/64
    and 36/64.
    """
    side = size / stride
    first = max(2, round(side * 12 / 64))
    second = max(first + 1, round(side * 24 / 64))
    return 1, first, second, max(second + 1, round(side * 36 / 64))
