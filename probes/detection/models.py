"""The two detectors for any backbone: the config of a probe, what follows in it from the backbone's
channels, strides and divisor, and the types that it names.

Images of a batch are encoded alone, or with those of their own shape; only the maps that heads
read are padded. In a batch padded to its largest image, a ViT attends to the padding (its features
move by a third of their norm) and the group norms of the pyramid count it, while images that are
evaluated one by one have none. Here the maps of an image are the same in every batch, in training
and in evaluation, cached or not.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import torch
from mmdet.models import SSDHead
from mmdet.models.data_preprocessors import DetDataPreprocessor
from mmdet.models.utils.misc import samplelist_boxtype2tensor
from mmengine.config import Config
from mmengine.model import BaseModule, ImgDataPreprocessor, stack_batch
from mmengine.registry import MODELS
from torch import Tensor

from backbones.backbone import Backbone, SimpleFeaturePyramid
from cliptex_common.device import is_accelerator
from probes.base import Context
from probes.datasets.base import PreparedDataset, Sample, Split
from probes.detection import coco  # noqa: F401  registers types
from probes.detection.pipelines import complete_pipeline
from probes.detection.settings import MaskRCNNSettings, SSDSettings
from probes.features.maps import ROUNDED, encoder_config, loader_config
from probes.train import frozen_backbone, schedules  # noqa: F401  registers what configs name
from probes.train.config import apply_training, config_files, read_config
from probes.train.sampling import batch_options

Part = dict[str, Any]  # of a config


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
    # each detector has settings of its own
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


Maps = Sequence[Tensor]  # (C, h, w), of one image


@MODELS.register_module()
class PerShape(BaseModule):
    """A backbone and a neck on images of several shapes, those of one shape together.

    Args:
        backbone, neck: their configs (or a list of necks, one after the other).
    """

    def __init__(self, backbone: Part, neck: Part | list[Part]) -> None:
        super().__init__()
        self.backbone, self.neck = MODELS.build(backbone), MODELS.build(neck)

    def forward(self, images: Sequence[Tensor | Maps]) -> tuple[Tensor, ...]:
        """(3, H, W) images, or cached maps of each, padded to the backbone's divisor only → levels
        (N, C, h, w) of the largest, with zeros where an image is smaller."""
        indices_by_shape: dict[Any, list[int]] = defaultdict(list)
        for index, image in enumerate(images):
            maps = [image] if isinstance(image, Tensor) else image
            indices_by_shape[tuple(each.shape for each in maps)].append(index)
        levels: list[Maps] = [()] * len(images)
        for indices in indices_by_shape.values():
            group: list[Any] = [images[index] for index in indices]
            if isinstance(group[0], Tensor):
                batch: Any = torch.stack(group)
            else:
                batch = tuple(map(torch.stack, zip(*group, strict=True)))
            outputs = self.neck(self.backbone(batch))
            if len(indices) == len(images):
                return tuple(outputs)
            for row, index in enumerate(indices):
                levels[index] = [output[row] for output in outputs]
        return tuple(stack_batch(list(maps)) for maps in zip(*levels, strict=True))


@MODELS.register_module()
class UnstackedDetPreprocessor(DetDataPreprocessor):
    """``DetDataPreprocessor`` whose ``inputs`` are a list of images (3, H, W), each padded to
    ``pad_size_divisor`` only; maps of images are not changed."""

    def forward(self, data: Mapping[str, Any], training: bool = False) -> dict[str, Any]:
        samples = self.cast_data(data["data_samples"])
        if isinstance(data["inputs"][0], Tensor):
            inputs: list[Any] = [
                ImgDataPreprocessor.forward(self, {"inputs": image[None]}, training)["inputs"][0]
                for image in data["inputs"]
            ]
            for sample, image in zip(samples, inputs, strict=True):
                sample.set_metainfo({"pad_shape": tuple(image.shape[-2:])})
        else:
            inputs = self.cast_data(data["inputs"])
        shape = tuple(max(sample.pad_shape[side] for sample in samples) for side in (0, 1))
        for sample in samples:
            sample.set_metainfo({"batch_input_shape": shape})
        samplelist_boxtype2tensor(samples)
        if self.pad_mask and training:
            self.pad_gt_masks(samples)
        return {"inputs": inputs, "data_samples": samples}


def detection_config(probe: Any, context: Context, held_out: Collection[Sample] = ()) -> Config:
    """Config of model, data, optimizer, schedule and scores; ``probes.train.loop.resolved``
    adds what all probes share.

    Args:
        probe: a ``DetectionProbe``.
        held_out: training images to score instead of ``val``; ``context`` trains without them.
    """
    data, settings, backbone = context.data, context.settings, context.backbone
    config = read_config(*config_files(probe.kind, probe.name))
    apply_training(config, settings)
    model, mean = config.model, [255 * value for value in backbone.data.mean]
    complete_detector(model, backbone, len(data.classes), settings)
    prepare = {
        "mean": mean,
        "std": [255 * value for value in backbone.data.std],
        "pad_size_divisor": backbone.divisor,
    }
    model.data_preprocessor.update(prepare)
    frozen = model.backbone.backbone
    frozen.update(context.backbone_config)
    frozen_backbone.tune_config(config, frozen, settings, None)
    cache = settings.cache if settings.has_frozen_part else "none"
    encoder = encoder_config(
        frozen.to_dict(),
        {**model.data_preprocessor, "type": "DetDataPreprocessor"},
        cache,
        context.device.type,
    )
    encoders: dict[str, Part | None] = {"train": encoder, "val": encoder}
    if encoder and settings.is_tuned:
        encoders = {"train": frozen_backbone.cut_encoder(encoder), "val": None}
    elif cache in ROUNDED:
        frozen.rounded = cache
    train, val = config.train_dataloader, config.val_dataloader
    is_grouped = getattr(settings, "aspect_ratio_groups", False)
    train.dataset.aspect_groups = settings.batch_size if is_grouped else 0
    val.update(batch_options(val.batch_size, context.device))
    train.dataset.update(coco_set(data, "train"))
    val.dataset.update(coco_set(data, "train" if held_out else "val"))
    if held_out:
        val.dataset.image_ids = [sample.target.image_id for sample in held_out]
    for loader, encoder in zip((train, val), encoders.values(), strict=True):
        loader.update(loader_config(encoder))
        loader.dataset.encoder = encoder
        complete_pipeline(loader.dataset.pipeline, settings, mean)
    config.val_evaluator.ann_file = f"{val.dataset.data_root}/{val.dataset.ann_file}"
    if is_accelerator(context.device):  # a GPU that can train on a batch can evaluate as many
        is_ssd = isinstance(settings, SSDSettings)
        largest = settings.size**2 if is_ssd else settings.short_side * settings.long_side
        val.batch_sampler.pixels = settings.batch_size * largest
    return config


def coco_set(data: PreparedDataset, split: Split) -> Part:
    """Options of the ``CocoInstances`` of a split's samples, whose ids are listed unless they are
    the complete official split."""
    samples = data.encoded(split)
    complete = len(samples) == data.spec.expected.get(split)
    return {
        "data_root": str(data.root),
        "ann_file": data.spec.annotations[split],
        "data_prefix": {"img": ""},
        "example": (samples[0].target.image_id, samples[0].image),
        "metainfo": {"classes": data.classes},
        "image_ids": None if complete else [sample.target.image_id for sample in samples],
    }
