"""``seg``: semantic segmentation."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from torch import Tensor
from torch.nn import functional as F

from backbones.cliptex.data.augment import IGNORE
from backbones.cliptex.data.ground_truth import Sample, coco_samples
from backbones.cliptex.tasks.base import Summed
from backbones.cliptex.tasks.shapes import ClassMap


class Segmentation(ClassMap):
    """Pixel-wise classes, learned by cross-entropy."""

    name = "seg"

    def ground_truth(self, root: Path, split: str) -> tuple[tuple[str, ...], list[Sample]]:
        """Instances of COCO: 0 is the background, crowds are unknown."""
        return coco_samples(root, split)

    def loss(self, prediction: Tensor, target: Tensor) -> Summed:
        """−log softmax(prediction)[target], summed over labelled pixels, and their number."""
        logits = prediction.float()
        total = F.cross_entropy(logits, target, ignore_index=IGNORE, reduction="sum")
        return total, self.count(target)

    def score(
        self, outputs: Mapping[str, np.ndarray], target: np.ndarray, classes: int = 0
    ) -> dict[str, float]:
        """Metrics in per cent.

        ``mIoU`` over classes that occur (unknown predictions count as wrong), ``aAcc``,
        ``object_acc`` (over pixels of objects), ``labelled`` (share not unknown) and
        ``labelled_acc`` (correct among those).
        """
        labels, scored = outputs[self.name], target < classes
        predicted, real = labels[scored].astype(np.int64), target[scored].astype(np.int64)
        # unknown is a column of its own
        predicted = np.where(predicted == np.iinfo(labels.dtype).max, classes, predicted)
        counts = np.bincount(real * (classes + 1) + predicted, minlength=classes * (classes + 1))
        counts = counts.reshape(classes, classes + 1)
        correct = counts.diagonal()
        union = counts.sum(1) + counts[:, :classes].sum(0) - correct
        present = counts.sum(1) > 0
        sure = counts[:, :classes].sum()
        return {
            "mIoU": 100 * float(np.mean(correct[present] / union[present])),
            "aAcc": 100 * float(correct.sum() / counts.sum()),
            "object_acc": 100 * float(correct[1:].sum() / max(counts[1:].sum(), 1)),
            "labelled": 100 * float(sure / counts.sum()),
            "labelled_acc": 100 * float(correct.sum() / max(sure, 1)),
        }


TASK = Segmentation()
