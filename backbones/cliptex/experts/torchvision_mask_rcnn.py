"""torchvision's Mask R-CNN from its own checkpoints, for the expert ``mask-rcnn``:
``maskrcnn_resnet50_fpn_coco-bf2d0c1e.pth`` and ``maskrcnn_resnet50_fpn_v2_coco-73cbd019.pth``, or
one that was trained with torchvision's references."""

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
    """What ``build`` takes to make the model of a state dict; None where it is of another kind of
    model."""
    if _MARK not in state:
        return None
    return {"type": TYPE, "version": 2 if _V2 in state else 1, "num_classes": len(state[_MARK])}


def build(version: int, num_classes: int, size: int) -> MaskRCNN:
    """The model with random weights, for images with ``size`` pixels on the short side;
    ``num_classes`` with background."""
    if version == 2:
        made: MaskRCNN = maskrcnn_resnet50_fpn_v2(
            weights=None, weights_backbone=None, num_classes=num_classes, min_size=size
        )
        return made
    backbone = resnet_fpn_backbone(backbone_name="resnet50", weights=None, trainable_layers=5)
    for module in backbone.modules():
        if isinstance(module, FrozenBatchNorm2d):
            module.eps = 0.0  # the first version was trained with frozen norms that added nothing
    return MaskRCNN(backbone, num_classes, min_size=size)


def classes(num_classes: int) -> tuple[str, ...]:
    """Names by the model's labels: COCO's 91 numbers, of which torchvision names eleven ``N/A``, or
    plain numbers."""
    coco = MaskRCNN_ResNet50_FPN_Weights.COCO_V1.meta["categories"]
    if num_classes == len(coco):
        return tuple(coco)
    return ("background", *(f"class {number}" for number in range(1, num_classes)))


def instances(model: MaskRCNN, images: Tensor) -> list[dict[str, Tensor]]:
    """uint8 (N, 3, H, W) → of each image ``masks`` (n, H, W) bool, ``scores`` (n,) and ``labels``
    (n,) from 1."""
    device = next(model.parameters()).device
    return [
        {"masks": found["masks"][:, 0] > 0.5, "scores": found["scores"], "labels": found["labels"]}
        for found in model(list(images.to(device).to(torch.float32) / 255))
    ]
