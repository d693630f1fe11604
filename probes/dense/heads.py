"""Configs of heads, and the types that they name: ``linear-segmentation``, ``linear-regression``
…"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import probes.runner.bridge

# isort: split
from mmseg.registry import MODELS

import probes.dense.segmentors  # noqa: F401  registers what configs name
from common.errors import UserError
from probes.dense.decode_heads.base import SHIPPED, DenseHead, FeatureMaps
from probes.dense.decode_heads.losses import Regression, Segmentation
from probes.dense.decode_heads.module import ModuleHead, module_config

for _name, _class in {
    **{head.name: head.load() for head in SHIPPED},
    "module": ModuleHead,
}.items():
    for _kind in (Segmentation, Regression):
        _type = f"{_name}-{_kind.__name__.lower()}"
        MODELS.register_module(name=_type, module=type(_type, (_kind, _class), {}))


def head_config(
    head: DenseHead, settings: Any, maps: FeatureMaps, objective: Mapping[str, Any]
) -> dict[str, Any]:
    """Configs of the ``decode_head`` and, where it reads the maps concatenated, of the ``neck``.

    Args:
        settings: a ``DenseSettings``.
        objective: ``num_classes`` and the loss of a segmenter, or ``loss_decode`` with an
            objective's config.
    """
    outputs = "segmentation" if "num_classes" in objective else "regression"
    concat = {
        "type": "ResizeConcat",
        "strides": list(maps.strides),
        "stride": maps.stride,
        "index": maps.index,
    }
    shared = {
        "align_corners": settings.align_corners,
        "loss_images": settings.loss_images,
        **objective,
    }
    if head.config is None:
        name, reads_one = head.name, True
        options = {
            "in_channels": sum(maps.channels),
            "in_index": 0,
            **shared,
            **head.load().options(settings, maps),
        }
    else:
        name = "module"
        reads_one, options = module_config(settings.head, maps, shared)
        if settings.feature_stride and not reads_one:
            raise UserError(
                f"feature_stride={settings.feature_stride} is of heads that read the maps"
                f" concatenated; {settings.head['type']} reads each at its own stride: set"
                " feature_stride=none"
            )
    model = {"decode_head": {"type": f"{name}-{outputs}", **options}}
    return {"neck": concat, **model} if reads_one or maps.index is not None else model
