"""MMDetection configs of the two detectors for any backbone, from its channels, strides, divisor
and data config."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from probes.runner import bridge  # before mmdet, which it prepares

# isort: split
import mmdet
from mmdet.models import SSDHead
from mmengine.config import Config, ConfigDict
from mmengine.registry import MODELS

from backbones.base import Backbone
from backbones.pyramid import SimpleFeaturePyramid
from probes.detection.settings import MaskRCNNSettings, SSDSettings

Part = dict[str, Any]


def pyramid(
    backbone: Backbone, finest: int, out_channels: int, extra: int
) -> tuple[tuple[int, ...], Part, list[float]]:
    """The levels of a detector from a backbone's maps.

    A backbone with one stride (a plain ViT) gets the simple feature pyramid over its last map; any
    other an FPN over the deepest map of each of its strides from ``finest`` on. Both are
    group-normalised, since the scale of frozen features differs by orders of magnitude between
    backbones.

    Args:
        finest: nominal stride of the finest level.
        extra: coarser levels to add, each by taking every second value.

    Returns:
        ``out_indices`` of the backbone, config of the neck, true strides of its levels without the
        extra ones.
    """
    if len(set(backbone.strides)) == 1:
        nominal = tuple(stride for stride in (4, 8, 16, 32) if stride >= finest)
        stride = backbone.strides[-1]
        neck = {
            "type": "SimpleFeaturePyramid",
            "in_channels": backbone.channels[-1],
            "out_channels": out_channels,
            "stride": stride,
            "out_strides": nominal,
            "num_outs": len(nominal) + extra,
        }
        return (-1,), neck, list(map(float, SimpleFeaturePyramid(1, 1, stride, nominal).strides))
    deepest = {stride: index for index, stride in enumerate(backbone.strides)}
    strides = sorted(stride for stride in deepest if stride >= min(finest, max(deepest)))
    indices = tuple(deepest[stride] for stride in strides)
    neck = {
        "type": "FPN",
        "in_channels": [backbone.channels[index] for index in indices],
        "out_channels": out_channels,
        "num_outs": len(strides) + extra,
        "norm_cfg": group_norm(out_channels),
    }
    return indices, neck, list(map(float, strides))


def group_norm(out_channels: int) -> Part:
    return {"type": "GN", "num_groups": bridge.groups_of(out_channels), "requires_grad": True}


def detector(backbone: Backbone, frozen: Part, classes: int, settings: Any) -> Part:
    """Config of a detector, on images as the backbone wants them: RGB, its statistics, padded at
    the right and bottom to its divisor.

    Args:
        frozen: config of the ``FrozenBackbone``, without ``out_indices``.
        settings: ``MaskRCNNSettings`` or ``SSDSettings``.
    """
    masks = isinstance(settings, MaskRCNNSettings)
    model = (mask_rcnn if masks else ssd)(backbone, classes, settings)
    prepare = {
        "type": "DetDataPreprocessor",
        "mean": [255 * value for value in backbone.data.mean],
        "std": [255 * value for value in backbone.data.std],
        "pad_mask": masks,
        "pad_size_divisor": backbone.divisor,
    }
    return {
        **model.to_dict(),
        "data_preprocessor": prepare,
        "backbone": {**frozen, **model.backbone},
    }


def mask_rcnn(backbone: Backbone, classes: int, settings: MaskRCNNSettings) -> ConfigDict:
    """Mask R-CNN (He, Gkioxari, Dollár, Girshick, ICCV 2017) as in mmdet's 1x configs."""
    channels, proposals = settings.out_channels, settings.proposals
    indices, neck, strides = pyramid(backbone, 4, channels, extra=1)
    model = _mmdet_model("mask-rcnn_r50_fpn.py")
    model.backbone, model.neck = {"out_indices": indices}, neck
    rpn, roi, train, test = model.rpn_head, model.roi_head, model.train_cfg, model.test_cfg
    rpn.update(in_channels=channels, feat_channels=channels)
    rpn.anchor_generator.update(scales=[settings.anchor_scale], strides=[*strides, 2 * strides[-1]])
    for extractor in (roi.bbox_roi_extractor, roi.mask_roi_extractor):
        extractor.update(out_channels=channels, featmap_strides=strides)
        extractor.roi_layer.use_torchvision = True
    roi.bbox_head.update(
        in_channels=channels, fc_out_channels=settings.fc_out_channels, num_classes=classes
    )
    roi.mask_head.update(in_channels=channels, conv_out_channels=channels, num_classes=classes)
    train.rpn_proposal.update(nms_pre=2 * proposals, max_per_img=proposals)
    train.rcnn.sampler.num = settings.rois_per_image
    test.rpn.update(nms_pre=proposals, max_per_img=proposals)
    test.rcnn.max_per_img = settings.detections
    return model


def ssd(backbone: Backbone, classes: int, settings: SSDSettings) -> ConfigDict:
    """SSD (Liu et al., ECCV 2016) on square images, with levels from stride 8 down to a map of one
    cell.

    The first levels come from the backbone, each of the others from the level before by a 3×3
    convolution of stride 2; a 1×1 convolution with group norm brings all to ``out_channels``
    channels. Anchor sizes are those of SSD300 on COCO in proportion to the image: 7 % at the first
    level, then evenly from 15 % to 87 %.
    """
    out_channels, size = settings.out_channels, settings.size
    padded = math.ceil(size / backbone.divisor) * backbone.divisor
    indices, neck, strides = pyramid(backbone, 8, out_channels, extra=0)
    cells = [math.floor(padded / stride) for stride in strides]
    while cells[-1] > 1:
        cells.append(math.ceil(cells[-1] / 2))
    levels = len(cells)
    steps = [0.15 + (0.87 - 0.15) * i / max(levels - 2, 1) for i in range(levels - 1)]
    shares = [0.07, *steps, 1.05]
    mapper = {
        "type": "ChannelMapper",
        "in_channels": neck["in_channels"],
        "kernel_size": 1,
        "out_channels": out_channels,
        "norm_cfg": group_norm(out_channels),
        "num_outs": levels,
    }
    model = _mmdet_model("ssd300.py")
    # a backbone with several strides needs no pyramid
    model.backbone, model.neck = {"out_indices": indices}, mapper
    if neck["type"] == "SimpleFeaturePyramid":
        model.neck = [neck, {**mapper, "in_channels": [out_channels] * len(strides)}]
    model.bbox_head.update(
        type="PredictingSSDHead", in_channels=[out_channels] * levels, num_classes=classes
    )
    model.bbox_head.anchor_generator.update(
        strides=[*strides, *(padded / count for count in cells[len(strides) :])],
        ratios=[[2] if level in (0, levels - 2, levels - 1) else [2, 3] for level in range(levels)],
        min_sizes=[size * share for share in shares[:-1]],
        max_sizes=[size * share for share in shares[1:]],
        input_size=size,  # not used where sizes are given, but printed
    )
    model.test_cfg.max_per_img = 100
    return model


@MODELS.register_module()
class PredictingSSDHead(SSDHead):
    """``SSDHead`` that can predict: since mmdet 3.2 prediction reads the head's ``loss_cls``, which
    SSD lacks (mmdetection issues 11063 and 11780)."""

    loss_cls = None


def _mmdet_model(file: str) -> ConfigDict:
    """A model config that comes with MMDetection."""
    folder = Path(mmdet.__file__).parent / ".mim/configs/_base_/models"
    return Config.fromfile(folder / file).model
