"""mmdet's SSD head with what its prediction needs."""

from __future__ import annotations

from probes.runner import bridge  # noqa: F401 - before mmdet, which it prepares

# isort: split
from mmdet.models import SSDHead
from mmengine.registry import MODELS


@MODELS.register_module()
class PredictingSSDHead(SSDHead):
    """``SSDHead`` that can predict.

    Since mmdet 3.2 prediction asks every head for its ``loss_cls``, which SSD, computing its loss by itself, has not
    (mmdetection issues 11063 and 11780).
    """

    loss_cls = None
