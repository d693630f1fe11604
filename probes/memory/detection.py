"""Phases of the detectors.

Their assigners and samplers depend on values. In their place the parts that take memory run on as
many regions as they have at most: neck, heads, regions of interest and masks.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext
from typing import Any

import probes.runner.bridge  # noqa: F401  before mmdet, which it prepares

# isort: split
import torch
from mmdet.structures.bbox import bbox_overlaps
from torch import Tensor

from probes.detection.config import detection_config
from probes.detection.settings import MaskRCNNSettings
from probes.memory.dense import FakeHead, Sizes, shapes, together
from probes.memory.plan import MemoryPlan, Phases

MASK_SIDE = 28  # of a predicted mask


def probe(plan: MemoryPlan) -> Phases:
    """See ``probes.detection.probe``."""
    return together(plan, [detection_config(plan.context)], FakeDetector)


class FakeDetector(FakeHead):
    """A detector of fake tensors."""

    one_batch = nullcontext  # there is one head, with which nothing is shared

    @staticmethod
    def largest(train: Any) -> int:
        sizes = shapes(train)
        return max(range(len(sizes)), key=lambda item: sizes[item][0] * sizes[item][1])

    @staticmethod
    def encoded_sizes(train: Any, crop: Tensor, settings: Any) -> Sizes:
        return 2 * shapes(train)  # each image and its mirror image

    def step(self, data: Mapping[str, Any]) -> None:
        samples = data["data_samples"]
        maps = self.model.extract_feat(data["inputs"])
        outputs = _outputs(self.model, maps, self.settings, len(samples), True)
        objects = max(len(sample.gt_instances) for sample in samples)
        _assign(outputs, objects, len(samples))
        loss = sum(output.float().mean() for output in outputs)
        self.optimizer.update_params(loss)

    def score(self, data: Mapping[str, Any], classes: Mapping[str, Any]) -> None:
        samples = data["data_samples"]
        maps = self.model.extract_feat(data["inputs"])
        _outputs(self.model, maps, self.settings, len(samples), False)
        if isinstance(self.settings, MaskRCNNSettings):
            _paste(samples, self.settings.detections)


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
        grid = torch.empty(detections, *sample.ori_shape, 2)
        small = torch.empty(detections, 1, MASK_SIDE, MASK_SIDE)
        masks.append(torch.nn.functional.grid_sample(small, grid)[:, 0] >= 0.5)
