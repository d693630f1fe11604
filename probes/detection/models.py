"""MMDetection configs of the two detectors for any backbone, from its channels, strides, divisor
and data config."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from probes.runner import bridge  # before mmdet, which it prepares

# isort: split
from mmdet.models import SSDHead
from mmengine.config import Config, ConfigDict
from mmengine.registry import MODELS

from backbones.base import Backbone
from backbones.pyramid import SimpleFeaturePyramid
from probes.detection.settings import MaskRCNNSettings, SSDSettings

Part = dict[str, Any]


def preprocessor(backbone: Backbone, masks: bool) -> Part:
    """Images as the backbone wants them: RGB, its statistics, padded at the right and bottom to its
    divisor."""
    return {
        "type": "DetDataPreprocessor",
        "mean": [255 * value for value in backbone.data.mean],
        "std": [255 * value for value in backbone.data.std],
        "bgr_to_rgb": True,
        "pad_mask": masks,
        "pad_size_divisor": backbone.divisor,
    }


def pyramid(
    backbone: Backbone, finest: int, out_channels: int, extra: int
) -> tuple[tuple[int, ...], Part, list[float]]:
    """How a detector's levels come from a backbone's maps.

    A backbone with one stride (a plain ViT) gets the simple feature pyramid over its last map; any
    other an FPN over the deepest map of each of its strides from ``finest`` on. Both are
    group-normalised: the scale of frozen features differs by orders of magnitude from one backbone
    to the next.

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
        strides = SimpleFeaturePyramid(1, 1, stride, nominal).strides
        neck = {
            "type": "SimpleFeaturePyramid",
            "in_channels": backbone.channels[-1],
            "out_channels": out_channels,
            "stride": stride,
            "out_strides": nominal,
            "norm": "GN",
            "num_outs": len(nominal) + extra,
        }
        return (-1,), neck, [float(stride) for stride in strides]
    deepest = {stride: index for index, stride in enumerate(backbone.strides)}
    coarse = max(deepest)
    chosen = sorted(stride for stride in deepest if stride >= min(finest, coarse))
    indices = tuple(deepest[stride] for stride in chosen)
    neck = {
        "type": "FPN",
        "in_channels": [backbone.channels[index] for index in indices],
        "out_channels": out_channels,
        "num_outs": len(chosen) + extra,
        "norm_cfg": group_norm(out_channels),
    }
    return indices, neck, [float(stride) for stride in chosen]


def group_norm(out_channels: int) -> Part:
    return {"type": "GN", "num_groups": bridge.groups_of(out_channels), "requires_grad": True}


def mask_rcnn(backbone: Backbone, frozen: Part, classes: int, settings: MaskRCNNSettings) -> Part:
    """Mask R-CNN (He, Gkioxari, Dollár, Girshick, ICCV 2017) as in mmdet's 1x configs.

    Args:
        frozen: config of the ``FrozenBackbone``, without ``out_indices``.
    """
    channels, proposals = settings.out_channels, settings.proposals
    indices, neck, strides = pyramid(backbone, 4, channels, extra=1)
    model = _mmdets("mask-rcnn_r50_fpn.py")
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
    parts = {
        "data_preprocessor": preprocessor(backbone, masks=True),
        "backbone": {**frozen, "out_indices": indices},
    }
    return {**model.to_dict(), **parts, "neck": neck}


def ssd(backbone: Backbone, frozen: Part, classes: int, settings: SSDSettings) -> Part:
    """SSD (Liu et al., ECCV 2016) on square images: levels from stride 8 down to a map of one cell.

    The first three levels come from the backbone, each of the others from the one before by a 3×3
    convolution of stride 2; a 1×1 convolution with group norm brings all to ``out_channels``
    channels. Anchor sizes are those of SSD300 on
    COCO in proportion to the image: 7 % at the first level, then evenly from 15 % to 87 %.
    """
    out_channels, size = settings.out_channels, settings.size
    padded = math.ceil(size / backbone.divisor) * backbone.divisor
    indices, neck, strides = pyramid(backbone, 8, out_channels, extra=0)
    own = (
        neck["type"] == "SimpleFeaturePyramid"
    )  # a backbone with several strides needs no neck of its own
    cells = [math.floor(padded / stride) for stride in strides]
    while cells[-1] > 1:
        cells.append(math.ceil(cells[-1] / 2))
    levels = len(cells)
    shares = [
        0.07,
        *(0.15 + (0.87 - 0.15) * i / max(levels - 2, 1) for i in range(levels - 1)),
        1.05,
    ]
    mapper = {
        "type": "ChannelMapper",
        "in_channels": [out_channels] * len(strides)
        if own
        else [backbone.channels[index] for index in indices],
        "kernel_size": 1,
        "out_channels": out_channels,
        "norm_cfg": group_norm(out_channels),
        "num_outs": levels,
    }
    model = _mmdets("ssd300.py")
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
    parts = {
        "data_preprocessor": preprocessor(backbone, masks=False),
        "backbone": {**frozen, "out_indices": indices},
    }
    return {**model.to_dict(), **parts, "neck": [neck, mapper] if own else mapper}


@MODELS.register_module()
class PredictingSSDHead(SSDHead):
    """``SSDHead`` that can predict.

    Since mmdet 3.2 prediction asks every head for its ``loss_cls``, which SSD, computing its loss
    by itself, has not (mmdetection issues 11063 and 11780).
    """

    loss_cls = None


def _mmdets(file: str) -> ConfigDict:
    """One of the model configs that come with MMDetection."""
    return Config.fromfile(
        Path(bridge.mmdet.__file__).parent / ".mim/configs/_base_/models" / file
    ).model
