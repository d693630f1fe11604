"""Small Mask R-CNNs with random weights, in files as MMDetection and torchvision write them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

import probes.experts  # noqa: F401  (imports MMDetection as it must be)

# isort: split
from mmdet.registry import MODELS
from mmengine.config import Config
from mmengine.registry import DefaultScope
from torchvision.models.detection import maskrcnn_resnet50_fpn

CONFIG = """
_base_ = 'mmdet::_base_/models/mask-rcnn_r50_fpn.py'
model = dict(
    backbone=dict(depth=18, init_cfg=dict(type='Pretrained', checkpoint='torchvision://resnet18')),
    neck=dict(in_channels=[64, 128, 256, 512], out_channels=16),
    rpn_head=dict(in_channels=16, feat_channels=16),
    roi_head=dict(
        bbox_roi_extractor=dict(out_channels=16),
        mask_roi_extractor=dict(out_channels=16),
        bbox_head=dict(in_channels=16, fc_out_channels=16, num_classes=3),
        mask_head=dict(in_channels=16, conv_out_channels=16, num_classes=3)))
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='Resize', scale=(128, 96), keep_ratio=True),
    dict(type='LoadAnnotations', with_bbox=True, with_mask=True),
    dict(type='PackDetInputs', meta_keys=('img_id', 'ori_shape', 'img_shape', 'scale_factor'))]
test_dataloader = dict(
    dataset=dict(pipeline=test_pipeline, metainfo=dict(classes=('mug', 'stool', 'torch'))))
"""


def write_mmdet(folder: Path) -> str:
    """A config as MMDetection's users write it and a checkpoint as its Runner writes it; as
    ``--experts mask-rcnn=…`` takes them."""
    config, weights = folder / "small.py", folder / "small.pth"
    config.write_text(CONFIG)
    model = Config.fromfile(config).model
    model.backbone.init_cfg = None
    torch.manual_seed(0)
    with DefaultScope.overwrite_default_scope("mmdet"):
        state = MODELS.build(model).state_dict()
    meta = {"dataset_meta": {"classes": ("mug",)}}
    torch.save({"state_dict": state, "meta": meta}, weights)
    return f"{config}:{weights}"


def write_torchvision(folder: Path, build: Any = maskrcnn_resnet50_fpn) -> str:
    """Weights of torchvision's model that is sure of something: dogs, and of the mask somewhere."""
    torch.manual_seed(0)
    model = build(weights=None, weights_backbone=None)
    with torch.no_grad():
        model.roi_heads.box_predictor.cls_score.weight.mul_(0.02)
        model.roi_heads.box_predictor.cls_score.bias[18] = 7.0
        model.roi_heads.mask_predictor.mask_fcn_logits.weight.mul_(30)
    torch.save(model.state_dict(), folder / "torchvision.pth")
    return str(folder / "torchvision.pth")


def shrink(model: Any) -> None:
    """Let torchvision's ``model`` see small images and few regions."""
    model.transform.min_size = (96,)
    model.rpn._post_nms_top_n = {"testing": 9}
    model.roi_heads.detections_per_img = 3
