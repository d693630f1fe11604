"""``seg``: semantic segmentation. A label is (H, W) uint8 or uint16, the largest value of its type
where nothing is valid."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from backbones.cliptex.data.augment import IGNORE, Geometry, warp_classes
from backbones.cliptex.tasks.base import Summed, Task
from common.dense_maps.pictures import palette
from common.dense_maps.read import read_classes


class Segmentation(Task):
    """Pixel-wise classes, learned by cross-entropy."""

    name = "seg"
    has_classes = True
    missing = torch.full((1, 1), IGNORE, dtype=torch.int16)

    def channels(self, classes: Sequence[str]) -> int:
        return len(classes)

    def loss(self, prediction: Tensor, target: Tensor) -> Summed:
        """−log softmax(prediction)[target], summed over labelled pixels, and their number.

        Args:
            prediction: (N, C, H, W) logits.
            target: (N, H, W) int64 classes, ``IGNORE`` where not labelled.
        """
        logits = prediction.float()
        total = F.cross_entropy(logits, target, ignore_index=IGNORE, reduction="sum")
        return total, self.count(target)

    def count(self, target: Tensor) -> Tensor:
        return (target != IGNORE).sum().float()

    def warp(self, maps: Sequence[Tensor], geometry: Geometry, size: int) -> Tensor:
        return warp_classes(maps, geometry, size, ignore=IGNORE)

    def read(self, path: Path) -> np.ndarray:
        """A palette or grey PNG of class numbers, 8 or 16 bits; 255 (or 65535) is unknown."""
        return read_classes(path)

    def encode(self, label: np.ndarray) -> bytes:
        """A PNG: of 8 bits with PASCAL VOC's palette, or of 16 bits, grey."""
        image = Image.fromarray(label)
        if label.dtype == np.uint8:
            image.putpalette(palette(256)[: int(label.max(initial=0)) + 1].tobytes())
        file = io.BytesIO()
        image.save(file, "PNG", bits=8)
        return file.getvalue()

    def decode(self, data: bytes) -> np.ndarray:
        return read_classes(io.BytesIO(data))

    def to_tensor(self, label: np.ndarray) -> Tensor:
        """int16, ``IGNORE`` where unknown."""
        unknown = label == np.iinfo(label.dtype).max
        return torch.from_numpy(np.where(unknown, IGNORE, label.astype(np.int32)).astype(np.int16))

    def score(
        self, outputs: Mapping[str, np.ndarray], target: np.ndarray, classes: int = 0
    ) -> dict[str, float]:
        """Metrics in per cent.

        ``mIoU`` over classes that occur (unknown predictions count as wrong), ``aAcc``,
        ``object_acc`` (over pixels of objects), ``labelled`` (share not unknown) and
        ``labelled_acc`` (correct among those).
        """
        labels, scored = outputs["seg"], target < classes
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

    def picture(self, label: np.ndarray, image: np.ndarray) -> np.ndarray:
        """Classes in PASCAL VOC's colours over the image."""
        colours = palette(256)[label.astype(int) % 256]
        small = np.asarray(Image.fromarray(image).resize(label.shape[::-1]))
        blend = np.where((label > 0)[..., None], 0.3 * small + 0.7 * colours, small)
        return np.where((label == np.iinfo(label.dtype).max)[..., None], 0, blend).astype(np.uint8)


TASK = Segmentation()
