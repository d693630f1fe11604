"""``seg``: semantic segmentation."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from backbones.cliptex.data.augment import IGNORE
from backbones.cliptex.ground_truth import LabelledImage, coco_samples
from backbones.cliptex.targets import ClassMap
from backbones.cliptex.tasks.base import Summed
from cliptex_common.dense_maps.scores import class_areas, confusion


class SegLabels(ClassMap):
    """Pixel-wise classes, learned by cross-entropy."""

    name = "seg"

    def ground_truth(self, root: Path, split: str) -> tuple[tuple[str, ...], list[LabelledImage]]:
        """Instances of COCO: 0 is the background, crowds are unknown."""
        return coco_samples(root, split)

    def loss(self, prediction: Tensor, target: Tensor) -> Summed:
        """−log softmax(prediction)[target], summed over labelled pixels, and their number."""
        logits = prediction.float()
        total = F.cross_entropy(logits, target, ignore_index=IGNORE, reduction="sum")
        return total, self.count(target)

    def accuracy(
        self, outputs: Mapping[str, np.ndarray], target: np.ndarray, classes: int = 0
    ) -> dict[str, float]:
        """Metrics in per cent.

        ``mIoU`` over classes that occur (unknown predictions count as wrong), ``aAcc``,
        ``object_acc`` (over pixels of objects), ``labelled`` (share not unknown) and
        ``labelled_acc`` (correct among those).
        """
        # unknown predictions are of a class that no pixel has; targets above it are not scored
        predicted = torch.from_numpy(np.minimum(outputs[self.name], classes).astype(np.int64))
        real = torch.from_numpy(np.where(target < classes, target, classes + 1).astype(np.int64))
        areas = class_areas(confusion(predicted, real, classes + 1, classes + 1))
        hit, answered, label = (area.numpy() for area in areas.values())
        present = label > 0
        union = label[present] + answered[present] - hit[present]
        sure = answered[:classes].sum()
        return {
            "mIoU": 100 * float(np.mean(hit[present] / union)),
            "aAcc": 100 * float(hit.sum() / label.sum()),
            "object_acc": 100 * float(hit[1:].sum() / max(label[1:].sum(), 1)),
            "labelled": 100 * float(sure / label.sum()),
            "labelled_acc": 100 * float(hit.sum() / max(sure, 1)),
        }


TASK = SegLabels()
