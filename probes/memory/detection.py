"""Phases of the detectors.

Their assigners and samplers depend on values. In their place the parts that take memory run on as
many regions as they have at most: neck, heads, regions of interest and masks.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from mmdet.structures.bbox import bbox_overlaps
from mmengine.config import Config
from mmengine.registry import DATASETS, DefaultScope
from torch import Tensor

from common.live_bytes import real_tensors
from probes.detection.config import detection_config
from probes.detection.settings import MaskRCNNSettings
from probes.memory.heads import FakeHead, collated, encode_maps, largest_batches, shapes
from probes.memory.plan import MemoryPlan, Phases
from probes.runner import bridge

MASK_SIDE = 28  # of a predicted mask


def detector(plan: MemoryPlan) -> Phases:
    """See ``probes.detection.probe``."""
    context, settings = plan.context, plan.settings
    bridge.share(context.backbone_config, plan.backbone)
    config = detection_config(context)
    uncached = detection_config(replace(context, settings=replace(settings, cache="none")))
    with DefaultScope.overwrite_default_scope("mmdet"):
        train, val = (
            DATASETS.build(loader.dataset)
            for loader in (uncached.train_dataloader, uncached.val_dataloader)
        )
        sizes = shapes(train)
        largest = max(range(len(sizes)), key=lambda item: sizes[item][0] * sizes[item][1])
        encoder = None
        if settings.cache != "none":
            encoder = one_by_one(uncached)
            both = (train, train, val)  # each image of train and its mirror image
            encode_maps(encoder, [shape for dataset in both for shape in shapes(dataset)])
            yield "encoding"
        head = FakeHead(config, plan)
        model, size = head.model, uncached.train_dataloader.batch_size
        with real_tensors():
            samples = [train[largest]] * size
        objects = max(len(sample["data_samples"].gt_instances) for sample in samples)
        for _ in range(2):
            batch = model.data_preprocessor(collated(samples, encoder), True)
            maps = model.extract_feat(batch["inputs"])
            outputs = _outputs(model, maps, settings, size, True)
            _assign(outputs, objects, size)
            loss = sum(output.float().mean() for output in outputs)
            head.optimizer.update_params(loss)
            del maps, outputs, loss
        yield "training"
        with torch.no_grad():
            for items in largest_batches(val, uncached.val_dataloader):
                with real_tensors():
                    samples = [val[item] for item in items]
                batch = model.data_preprocessor(collated(samples, encoder), False)
                maps = model.extract_feat(batch["inputs"])
                _outputs(model, maps, settings, len(items), False)
                if isinstance(settings, MaskRCNNSettings):
                    _paste(samples, settings.detections)
        yield "evaluation"


def one_by_one(config: Config) -> Config:
    """``config`` without ``PerShape``: the frozen backbone on batches of one shape."""
    preprocess = {**config.model.data_preprocessor, "type": "DetDataPreprocessor"}
    model = {"backbone": config.model.backbone.backbone, "data_preprocessor": preprocess}
    return Config({"model": model, "default_scope": "mmdet"})


def _outputs(
    model: Any, maps: tuple[Tensor, ...], settings: Any, images: int, training: bool
) -> list[Tensor]:
    """All that the heads put out for a batch."""
    if not isinstance(settings, MaskRCNNSettings):
        scores, boxes = model.bbox_head(maps)
        return [_joined(scores, model.bbox_head.cls_out_channels), _joined(boxes, 4)]
    regions = settings.proposals, settings.detections  # of the box head, of the mask head
    if training:
        regions = settings.rois_per_image, settings.rois_per_image // 4
    scores, boxes = model.rpn_head(maps)
    for_boxes, for_masks = (torch.empty(images * count, 5) for count in regions)
    of_boxes = model.roi_head._bbox_forward(maps, for_boxes)
    of_masks = model.roi_head._mask_forward(maps, for_masks)
    return [*scores, *boxes, of_boxes["cls_score"], of_boxes["bbox_pred"], of_masks["mask_preds"]]


def _joined(levels: list[Tensor], channels: int) -> Tensor:
    """The outputs of all levels, (N, anchors, channels)."""
    flat = [each.permute(0, 2, 3, 1).reshape(len(each), -1, channels) for each in levels]
    return torch.cat(flat, dim=1)


def _assign(outputs: list[Tensor], objects: int, images: int) -> None:
    """Compare the anchors of an image with its objects."""
    anchors = max(outputs[0].numel() // images // max(outputs[0].shape[-1], 1), 1)
    if outputs[0].dim() == 4:  # levels of the RPN
        anchors = sum(each.numel() for each in outputs if each.dim() == 4) // 5 // images
    bbox_overlaps(torch.empty(anchors, 4), torch.empty(objects, 4))


def _paste(samples: list[Any], detections: int) -> None:
    """The masks of a batch at the resolution of the image files."""
    masks = []
    for sample in samples:
        grid = torch.empty(detections, *sample["data_samples"].ori_shape, 2)
        small = torch.empty(detections, 1, MASK_SIDE, MASK_SIDE)
        masks.append(torch.nn.functional.grid_sample(small, grid)[:, 0] >= 0.5)
