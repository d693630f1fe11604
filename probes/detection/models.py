"""MMDetection configs of the two detectors for any backbone, from its channels, strides, divisor and data config."""

from __future__ import annotations

import math
from typing import Any

from backbones.base import Backbone
from backbones.pyramid import SimpleFeaturePyramid
from probes.detection.settings import MaskRCNNSettings, SSDSettings
from probes.runner.bridge import groups_of

Part = dict[str, Any]


def preprocessor(backbone: Backbone, masks: bool) -> Part:
    """Images as the backbone wants them: RGB, its statistics, padded at the right and bottom to its divisor."""
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

    A backbone with one stride (a plain ViT) gets the simple feature pyramid over its last map; any other an FPN over
    the deepest map of each of its strides from ``finest`` on. Both are group-normalised, because the scale of frozen
    features differs by orders of magnitude from one backbone to the next.

    Args:
        finest: nominal stride of the finest level.
        extra: coarser levels to add, each by taking every second value.

    Returns:
        ``out_indices`` of the backbone, config of the neck, true strides of its levels without the extra ones.
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
    return {"type": "GN", "num_groups": groups_of(out_channels), "requires_grad": True}


def mask_rcnn(backbone: Backbone, frozen: Part, classes: int, settings: MaskRCNNSettings) -> Part:
    """Mask R-CNN (He, Gkioxari, Dollár, Girshick, ICCV 2017) with mmdet's 1x settings.

    Args:
        frozen: config of the ``FrozenBackbone``, without ``out_indices``.
        classes: number of classes.
        settings: of which those of the model are read.
    """
    out_channels = settings.out_channels
    indices, neck, strides = pyramid(backbone, 4, out_channels, extra=1)

    def extractor(size: int) -> Part:
        return {
            "type": "SingleRoIExtractor",
            "roi_layer": {"type": "RoIAlign", "output_size": size, "sampling_ratio": 0},
            "out_channels": out_channels,
            "featmap_strides": strides,
        }

    return {
        "type": "MaskRCNN",
        "data_preprocessor": preprocessor(backbone, masks=True),
        "backbone": {**frozen, "out_indices": indices},
        "neck": neck,
        "rpn_head": {
            "type": "RPNHead",
            "in_channels": out_channels,
            "feat_channels": out_channels,
            "anchor_generator": {
                "type": "AnchorGenerator",
                "scales": [settings.anchor_scale],
                "ratios": [0.5, 1.0, 2.0],
                "strides": [*strides, 2 * strides[-1]],
            },
            "bbox_coder": _coder(0.1, 0.2, scaled=False),
            "loss_cls": {"type": "CrossEntropyLoss", "use_sigmoid": True, "loss_weight": 1.0},
            "loss_bbox": {"type": "L1Loss", "loss_weight": 1.0},
        },
        "roi_head": {
            "type": "StandardRoIHead",
            "bbox_roi_extractor": extractor(7),
            "bbox_head": {
                "type": "Shared2FCBBoxHead",
                "in_channels": out_channels,
                "fc_out_channels": settings.fc_out_channels,
                "roi_feat_size": 7,
                "num_classes": classes,
                "bbox_coder": _coder(0.1, 0.2),
                "reg_class_agnostic": False,
                "loss_cls": {"type": "CrossEntropyLoss", "use_sigmoid": False, "loss_weight": 1.0},
                "loss_bbox": {"type": "L1Loss", "loss_weight": 1.0},
            },
            "mask_roi_extractor": extractor(14),
            "mask_head": {
                "type": "FCNMaskHead",
                "num_convs": 4,
                "in_channels": out_channels,
                "conv_out_channels": out_channels,
                "num_classes": classes,
                "loss_mask": {"type": "CrossEntropyLoss", "use_mask": True, "loss_weight": 1.0},
            },
        },
        "train_cfg": {
            "rpn": {
                "assigner": _assigner(0.7, 0.3, 0.3, match_low_quality=True),
                "sampler": _sampler(256, 0.5, add_truth=False),
                "allowed_border": -1,
                "pos_weight": -1,
                "debug": False,
            },
            "rpn_proposal": _proposals(2 * settings.proposals, settings.proposals),
            "rcnn": {
                "assigner": _assigner(0.5, 0.5, 0.5, match_low_quality=True),
                "sampler": _sampler(settings.rois_per_image, 0.25, add_truth=True),
                "mask_size": 28,
                "pos_weight": -1,
                "debug": False,
            },
        },
        "test_cfg": {
            "rpn": _proposals(settings.proposals, settings.proposals),
            "rcnn": {
                "score_thr": 0.05,
                "nms": {"type": "nms", "iou_threshold": 0.5},
                "max_per_img": settings.detections,
                "mask_thr_binary": 0.5,
            },
        },
    }


def ssd(backbone: Backbone, frozen: Part, classes: int, settings: SSDSettings) -> Part:
    """SSD (Liu et al., ECCV 2016) on square images: levels from stride 8 down to a map of one cell.

    The first three levels come from the backbone, each of the others from the one before by a 3×3 convolution of
    stride 2; a 1×1 convolution with group norm brings all to ``out_channels`` channels. Anchor sizes are those of SSD300 on
    COCO in proportion to the image: 7 % at the first level, then evenly from 15 % to 87 %.
    """
    out_channels, size = settings.out_channels, settings.size
    padded = math.ceil(size / backbone.divisor) * backbone.divisor
    indices, neck, strides = _ssd_maps(backbone, out_channels)
    cells = [math.floor(padded / stride) for stride in strides]
    while cells[-1] > 1:
        cells.append(math.ceil(cells[-1] / 2))
    levels = len(cells)
    steps = [0.15 + (0.87 - 0.15) * i / max(levels - 2, 1) for i in range(levels - 1)]
    shares = [0.07, *steps, 1.05]
    mapper = {
        "type": "ChannelMapper",
        "in_channels": [out_channels] * len(strides) if neck else [backbone.channels[index] for index in indices],
        "kernel_size": 1,
        "out_channels": out_channels,
        "norm_cfg": group_norm(out_channels),
        "num_outs": levels,
    }
    return {
        "type": "SingleStageDetector",
        "data_preprocessor": preprocessor(backbone, masks=False),
        "backbone": {**frozen, "out_indices": indices},
        "neck": [neck, mapper] if neck else mapper,
        "bbox_head": {
            "type": "PredictingSSDHead",
            "in_channels": [out_channels] * levels,
            "num_classes": classes,
            "anchor_generator": {
                "type": "SSDAnchorGenerator",
                "scale_major": False,
                "strides": [*strides, *(padded / count for count in cells[len(strides) :])],
                "ratios": [[2] if level in (0, levels - 2, levels - 1) else [2, 3] for level in range(levels)],
                "min_sizes": [size * share for share in shares[:-1]],
                "max_sizes": [size * share for share in shares[1:]],
                # not used where sizes are given, but printed
                "input_size": size,
                "basesize_ratio_range": (0.15, 0.9),
            },
            "bbox_coder": _coder(0.1, 0.2),
        },
        "train_cfg": {
            "assigner": {**_assigner(0.5, 0.5, 0.0, match_low_quality=True), "gt_max_assign_all": False},
            "sampler": {"type": "PseudoSampler"},
            "smoothl1_beta": 1.0,
            "allowed_border": -1,
            "pos_weight": -1,
            "neg_pos_ratio": 3,
            "debug": False,
        },
        "test_cfg": {
            "nms_pre": 1000,
            "nms": {"type": "nms", "iou_threshold": 0.45},
            "min_bbox_size": 0,
            "score_thr": 0.02,
            "max_per_img": 100,
        },
    }


def _ssd_maps(backbone: Backbone, out_channels: int) -> tuple[tuple[int, ...], Part | None, list[float]]:
    """As ``pyramid``, from stride 8 on; a backbone with several strides needs no neck of its own."""
    indices, neck, strides = pyramid(backbone, 8, out_channels, extra=0)
    return indices, neck if neck["type"] == "SimpleFeaturePyramid" else None, strides


def _coder(centre: float, size: float, scaled: bool = True) -> Part:
    stds = [centre, centre, size, size] if scaled else [1.0] * 4
    return {"type": "DeltaXYWHBBoxCoder", "target_means": [0.0] * 4, "target_stds": stds}


def _assigner(positive: float, negative: float, minimum: float, match_low_quality: bool) -> Part:
    return {
        "type": "MaxIoUAssigner",
        "pos_iou_thr": positive,
        "neg_iou_thr": negative,
        "min_pos_iou": minimum,
        "match_low_quality": match_low_quality,
        "ignore_iof_thr": -1,
    }


def _sampler(number: int, positives: float, add_truth: bool) -> Part:
    return {
        "type": "RandomSampler",
        "num": number,
        "pos_fraction": positives,
        "neg_pos_ub": -1,
        "add_gt_as_proposals": add_truth,
    }


def _proposals(before: int, kept: int) -> Part:
    return {
        "nms_pre": before,
        "max_per_img": kept,
        "nms": {"type": "nms", "iou_threshold": 0.7},
        "min_bbox_size": 0,
    }
