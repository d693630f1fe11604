"""torchvision's Mask R-CNN from its own checkpoints, for the expert ``mask-rcnn``, which stands in
``probes.experts`` because MMDetection, the other source of its networks, is used there alone.

They are ``maskrcnn_resnet50_fpn_coco-bf2d0c1e.pth``, ``maskrcnn_resnet50_fpn_v2_coco-73cbd019.pth``
and others that were trained with torchvision's references, as bare state dicts or as its training
script saves them.
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

from backbones.checkpoint import Checkpoint
from cliptex_common.files import sha256_file

TYPE = "torchvision.MaskRCNN"
# the start of the sha256 of the published file, as in its name
PUBLISHED_V1 = "bf2d0c1e"
_MARK = "roi_heads.box_predictor.cls_score.weight"
_V2 = "roi_heads.box_head.0.0.weight"  # the second version's box head has convolutions


def describe(weights: Checkpoint) -> dict[str, Any] | None:
    """The config that ``build`` takes for a checkpoint; None if it is not of such a model.

    The frozen norms of torchvision's first published weights add nothing to the variance; those of
    every other first version, trained with torchvision's references, add 1e-5.
    """
    state = weights.state
    if _MARK not in state:
        return None
    model: dict[str, Any] = {
        "type": TYPE,
        "version": 2 if _V2 in state else 1,
        "num_classes": len(state[_MARK]),
    }
    if model["version"] == 1:
        published = sha256_file(weights.path).startswith(PUBLISHED_V1)
        model["eps"] = 0.0 if published else 1e-5
    return model


def build(model: Mapping[str, Any]) -> MaskRCNN:
    """The model of a config with random weights; ``num_classes`` counts the background."""
    classes = model["num_classes"]
    if model["version"] == 2:
        return maskrcnn_resnet50_fpn_v2(weights=None, weights_backbone=None, num_classes=classes)
    backbone = resnet_fpn_backbone(backbone_name="resnet50", weights=None, trainable_layers=5)
    for module in backbone.modules():
        if isinstance(module, FrozenBatchNorm2d):
            module.eps = model["eps"]
    return MaskRCNN(backbone, classes)


def classes(num_classes: int) -> tuple[str, ...]:
    """Names of the model's labels: COCO's 91, eleven of them ``N/A``, or plain numbers."""
    coco = MaskRCNN_ResNet50_FPN_Weights.COCO_V1.meta["categories"]
    if num_classes == len(coco):
        return tuple(coco)
    return ("background", *(f"class {number}" for number in range(1, num_classes)))


def instances(model: MaskRCNN, images: Tensor, least: float) -> list[dict[str, Tensor]]:
    """The instances in images (N, 3, H, W) uint8 whose score is at least ``least``.

    Their masks are pasted into the images on the CPU: torchvision reads the sides of each box as
    numbers, and an accelerator would be waited for at each of them.

    Returns:
        for each image ``masks`` (n, H, W) bool, ``scores`` (n,) and ``labels`` (n,) from 1, on the
        CPU.
    """
    device = next(model.parameters()).device
    batch, _ = model.transform(list(images.to(device).to(torch.float32) / 255))
    maps = model.backbone(batch.tensors)
    proposals, _ = model.rpn(batch, maps)
    results, _ = model.roi_heads(maps, proposals, batch.image_sizes)
    results = [{name: each.cpu() for name, each in result.items()} for result in results]
    results = [
        {name: each[result["scores"] >= least] for name, each in result.items()}
        for result in results
    ]
    sizes = [tuple(images.shape[2:])] * len(images)
    results = model.transform.postprocess(results, batch.image_sizes, sizes)
    return [{**result, "masks": result["masks"][:, 0] > 0.5} for result in results]
