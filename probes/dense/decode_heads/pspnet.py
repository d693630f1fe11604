"""PSPNet's head (Zhao et al., "Pyramid Scene Parsing Network", CVPR 2017)."""

from __future__ import annotations

from typing import Any

import probes.runner.bridge  # noqa: F401  before mmseg, which it prepares

# isort: split
from mmseg.models.decode_heads import PSPHead

from probes.dense.decode_heads.base import FeatureMaps, convolutional


class PSPNetHead(PSPHead):
    """mmseg's."""

    @staticmethod
    def options(settings: Any, maps: FeatureMaps) -> dict[str, Any]:
        return convolutional(settings)
