"""The maps that a backbone gives to a head, and whether backbone, dataset and settings fit it."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import Any

from common.errors import UserError
from probes.datasets.base import PreparedDataset
from probes.dense.decode_heads.base import DenseHead, FeatureMaps
from probes.dense.settings import DenseSettings
from probes.dense.tasks import DENSE_TASKS
from probes.layers import position


def feature_maps(settings: DenseSettings, backbone: Any) -> FeatureMaps:
    """The maps that a head reads of training crops.

    Args:
        backbone: a ``Backbone``, or a record with its names, weights, channels, strides and
            divisor.
    """
    index = position(settings, backbone)
    layer = -1 if settings.layers == "last" else index
    channels, strides = backbone.channels, backbone.strides
    if layer is not None:
        channels, strides = (channels[layer],), (strides[layer],)
    if reads_class_token(settings, backbone):
        channels = tuple(2 * width for width in channels)
    stride = settings.feature_stride or native_stride(strides)
    height, width = settings.crop or (settings.size,) * 2
    crop = round_up(height, backbone.divisor), round_up(width, backbone.divisor)
    return FeatureMaps(tuple(channels), tuple(strides), stride, crop, index)


def native_stride(strides: Sequence[float]) -> float:
    """The finest of ``strides`` that is 8 or more (at 4, of CNNs, a head costs four times what it
    does at 8); else the coarsest."""
    return min((stride for stride in strides if stride >= 8), default=max(strides))


def reads_class_token(settings: DenseSettings, backbone: Any) -> bool:
    """Whether maps have class tokens, by the setting ``class_token``."""
    if settings.class_token == "concat-dino":
        names = f"{backbone.name} {backbone.architecture} {backbone.weights.source}"
        return bool(re.search(r"(?<![a-z0-9])dino(v2)?(?![a-z0-9])", names))
    return settings.class_token != "none"


def round_up(side: int, divisor: int) -> int:
    """``side``, rounded up to a multiple of ``divisor``."""
    return math.ceil(side / divisor) * divisor


def check(head: DenseHead, settings: DenseSettings, data: PreparedDataset, backbone: Any) -> None:
    """Raise ``UserError`` where dataset, settings or backbone do not fit a head.

    Args:
        backbone: see ``feature_maps``.
    """
    if settings.batch_size < head.min_batch:
        raise UserError(
            f"{head.name} normalises pooled features over the batch: batch_size must be"
            f" {head.min_batch} or more"
        )
    if settings.class_token == "project" and head.name != "dpt":
        raise UserError(f"class_token=project is of dpt, not of {head.name}; use concat")
    maps = feature_maps(settings, backbone)
    if head.maps not in (None, len(maps.channels)):
        raise UserError(
            f"{head.name} fuses {head.maps} feature maps, and {backbone.name!r} gives"
            f" {len(maps.channels)} (layers={settings.layers}); choose another probe or backbone"
        )
    DENSE_TASKS.find(data.spec.kind).check_dataset(data)
