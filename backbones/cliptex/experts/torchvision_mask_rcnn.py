"""torchvision's Mask R-CNN from its own checkpoints, for the expert ``mask-rcnn``.

They are ``maskrcnn_resnet50_fpn_coco-bf2d0c1e.pth``, ``maskrcnn_resnet50_fpn_v2_coco-73cbd019.pth``
and others that were trained with torchvision's references.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torchvision.models.detection import (
    MaskRCNN,
    MaskRCNN_ResNet50_FPN_Weights,
    maskrcnn_resnet50_fpn_v2,
)
from torchvision.models.detection.backbone_utils import resnet_fpn_backbone
from torchvision.ops import FrozenBatchNorm2d

TYPE = "torchvision.MaskRCNN"
_MARK = "roi_heads.box_predictor.cls_score.weight"
_V2 = "roi_heads.box_head.0.0.weight"  # the second version's box head has convolutions


def describe(state: Mapping[str, Tensor]) -> dict[str, Any] | None:
    """The arguments of ``build`` for a state dict; None if it is not such a model's."""
    if _MARK not in state:
        return None
    return {"type": TYPE, "version": 2 if _V2 in state else 1, "num_classes": len(state[_MARK])}


def build(version: int, num_classes: int, size: int) -> MaskRCNN:
    """The model with random weights; ``num_classes`` with background, ``size``: short side."""
    if version == 2:
        return maskrcnn_resnet50_fpn_v2(
            weights=None, weights_backbone=None, num_classes=num_classes, min_size=size
        )
    backbone = resnet_fpn_backbone(backbone_name="resnet50", weights=None, trainable_layers=5)
    for module in backbone.modules():
        if isinstance(module, FrozenBatchNorm2d):
            module.eps = 0.0  # the first version was trained with frozen norms that added nothing
    return MaskRCNN(backbone, num_classes, min_size=size)


def classes(num_classes: int) -> tuple[str, ...]:
    """Names of the model's labels: COCO's 91, eleven of them ``N/A``, or plain numbers."""
    coco = MaskRCNN_ResNet50_FPN_Weights.COCO_V1.meta["categories"]
    if num_classes == len(coco):
        return tuple(coco)
    return ("background", *(f"class {number}" for number in range(1, num_classes)))


def instances(model: MaskRCNN, images: Tensor) -> list[dict[str, Tensor]]:
    """The instances in images (N, 3, H, W) uint8.

    Returns:
        for each image ``masks`` (n, H, W) bool, ``scores`` (n,) and ``labels`` (n,) from 1.
    """
    device = next(model.parameters()).device
    return [
        {
            "masks": result["masks"][:, 0] > 0.5,
            "scores": result["scores"],
            "labels": result["labels"],
        }
        for result in model(list(images.to(device).to(torch.float32) / 255))
    ]
