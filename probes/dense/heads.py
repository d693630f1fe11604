"""Configs of the shipped heads, and the types that they name: ``linear-segmentation``,
``linear-regression`` …"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import probes.runner.bridge

# isort: split
from mmseg.registry import MODELS

import probes.dense.segmentors  # noqa: F401  registers what configs name
from probes.dense.decode_heads.base import SHIPPED, DenseHead, FeatureMaps
from probes.dense.decode_heads.losses import Regression, Segmentation
from probes.dense.settings import DenseSettings

for _head in SHIPPED:
    for _kind in (Segmentation, Regression):
        _type = f"{_head.name}-{_kind.__name__.lower()}"
        MODELS.register_module(name=_type, module=type(_type, (_kind, _head.load()), {}))


def head_config(
    head: DenseHead, settings: DenseSettings, maps: FeatureMaps, objective: Mapping[str, Any]
) -> dict[str, Any]:
    """Config of a decode head on the maps, which come concatenated.

    Args:
        objective: ``num_classes`` and the loss of a segmenter, or ``loss_decode`` with an
            objective's config.
    """
    return {
        "type": f"{head.name}-{'segmentation' if 'num_classes' in objective else 'regression'}",
        "in_channels": sum(maps.channels),
        "in_index": 0,
        "align_corners": settings.align_corners,
        "loss_images": settings.loss_images,
        **objective,
        **head.load().options(settings, maps),
    }
