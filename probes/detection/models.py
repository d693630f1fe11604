"""The two detectors for any backbone: what follows from its channels, strides and divisor."""

from __future__ import annotations

import math
from typing import Any

from mmdet.models import SSDHead
from mmengine.registry import MODELS

from backbones.base import Backbone
from backbones.pyramid import SimpleFeaturePyramid
from probes.detection.settings import MaskRCNNSettings, SSDSettings
from probes.train import frozen_backbone

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
    if backbone.is_plain:
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
    return {
        "type": "GN",
        "num_groups": frozen_backbone.groups_of(out_channels),
        "requires_grad": True,
    }


def complete_detector(model: Any, backbone: Backbone, classes: int, settings: Any) -> None:
    """Complete a detector's config with the pyramid, and what follows from its strides.

    Args:
        model: of a config file, with the settings' literals.
        settings: ``MaskRCNNSettings`` or ``SSDSettings``.
    """
    complete = mask_rcnn if isinstance(settings, MaskRCNNSettings) else ssd
    indices, neck = complete(model, backbone, classes, settings)
    model.backbone.backbone.out_indices, model.backbone.neck = indices, neck


def mask_rcnn(
    model: Any, backbone: Backbone, classes: int, settings: MaskRCNNSettings
) -> tuple[tuple[int, ...], Any]:
    """Complete Mask R-CNN; returns ``out_indices`` of the backbone and the neck."""
    indices, neck, strides = pyramid(backbone, 4, settings.out_channels, extra=1)
    model.rpn_head.anchor_generator.update(
        scales=[settings.anchor_scale], strides=[*strides, 2 * strides[-1]]
    )
    roi = model.roi_head
    for extractor in (roi.bbox_roi_extractor, roi.mask_roi_extractor):
        extractor.featmap_strides = strides
        extractor.roi_layer.use_torchvision = True
    roi.bbox_head.num_classes = roi.mask_head.num_classes = classes
    model.train_cfg.rpn_proposal.nms_pre = 2 * settings.proposals
    return indices, neck


def ssd(
    model: Any, backbone: Backbone, classes: int, settings: SSDSettings
) -> tuple[tuple[int, ...], Any]:
    """Complete SSD on square images, with levels from stride 8 down to a map of one cell; returns
    ``out_indices`` of the backbone and the neck.

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
        **model.backbone.neck,
        "in_channels": neck["in_channels"],
        "out_channels": out_channels,
        "norm_cfg": group_norm(out_channels),
        "num_outs": levels,
    }
    model.bbox_head.update(in_channels=[out_channels] * levels, num_classes=classes)
    model.bbox_head.anchor_generator.update(
        strides=[*strides, *(padded / count for count in cells[len(strides) :])],
        ratios=[[2] if level in (0, levels - 2, levels - 1) else [2, 3] for level in range(levels)],
        min_sizes=[size * share for share in shares[:-1]],
        max_sizes=[size * share for share in shares[1:]],
        input_size=size,  # not used where sizes are given, but printed
    )
    if neck["type"] == "FPN":  # a backbone with several strides needs no pyramid
        return indices, mapper
    return indices, [neck, {**mapper, "in_channels": [out_channels] * len(strides)}]


@MODELS.register_module()
class PredictingSSDHead(SSDHead):
    """``SSDHead`` that can predict: since mmdet 3.2 prediction reads the head's ``loss_cls``, which
    SSD lacks (mmdetection issues 11063 and 11780)."""

    loss_cls = None
