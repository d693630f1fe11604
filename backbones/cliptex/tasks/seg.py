"""``seg``: semantic segmentation. A label is (H, W) uint8 or uint16, the largest value of its type
where nothing is known."""

from __future__ import annotations

import functools
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
        return F.cross_entropy(
            prediction.float(), target, ignore_index=IGNORE, reduction="sum"
        ), self.count(target)

    def count(self, target: Tensor) -> Tensor:
        return (target != IGNORE).sum().float()

    def warp(self, maps: Sequence[Tensor], geometry: Geometry, size: int) -> Tensor:
        return warp_classes(maps, geometry, size, ignore=IGNORE)

    def read(self, path: Path) -> np.ndarray:
        """A palette or grey PNG of class numbers, 8 or 16 bits; 255 (or 65535) is unknown."""
        with Image.open(path) as image:
            return _classes(image)

    def encode(self, label: np.ndarray) -> bytes:
        """8 bits: a PNG with PASCAL VOC's colours, as long as its largest class; 16 bits: a grey
        one."""
        image = Image.fromarray(label)
        if label.dtype == np.uint8:
            image.putpalette(voc_palette()[: int(label.max(initial=0)) + 1].tobytes())
        elif label.dtype != np.uint16:
            raise TypeError(f"a segmentation map is uint8 or uint16, not {label.dtype}")
        file = io.BytesIO()
        image.save(file, "PNG", bits=8)
        return file.getvalue()

    def decode(self, data: bytes) -> np.ndarray:
        return _classes(Image.open(io.BytesIO(data)))

    def to_tensor(self, label: np.ndarray) -> Tensor:
        """int16, ``IGNORE`` where unknown."""
        unknown = label == np.iinfo(label.dtype).max
        return torch.from_numpy(np.where(unknown, IGNORE, label.astype(np.int32)).astype(np.int16))

    def score(
        self, outputs: Mapping[str, np.ndarray], truth: np.ndarray, classes: int = 0
    ) -> dict[str, float]:
        """``mIoU`` over classes that occur (unknown predictions count as wrong), ``aAcc``,
        ``object_acc`` (over pixels of objects), ``labelled`` (share not unknown) and
        ``labelled_acc`` (right among those), in per cent."""
        labels = outputs["seg"]
        scored = truth < classes
        found, real = labels[scored].astype(np.int64), truth[scored].astype(np.int64)
        found = np.where(
            found == np.iinfo(labels.dtype).max, classes, found
        )  # 'not sure' is a column of its own
        counts = np.bincount(real * (classes + 1) + found, minlength=classes * (classes + 1))
        counts = counts.reshape(classes, classes + 1)
        right = counts.diagonal()
        union = counts.sum(1) + counts[:, :classes].sum(0) - right
        occurs = counts.sum(1) > 0
        sure = counts[:, :classes].sum()
        return {
            "mIoU": 100 * float(np.mean(right[occurs] / union[occurs])),
            "aAcc": 100 * float(right.sum() / counts.sum()),
            "object_acc": 100 * float(right[1:].sum() / max(counts[1:].sum(), 1)),
            "labelled": 100 * float(sure / counts.sum()),
            "labelled_acc": 100 * float(right.sum() / max(sure, 1)),
        }

    def picture(self, label: np.ndarray, image: np.ndarray) -> np.ndarray:
        """Classes in PASCAL VOC's colours over the image."""
        colours = voc_palette()[label.astype(int) % 256]
        small = np.asarray(Image.fromarray(image).resize(label.shape[::-1]))
        blend = np.where((label > 0)[..., None], 0.3 * small + 0.7 * colours, small)
        return np.where((label == np.iinfo(label.dtype).max)[..., None], 0, blend).astype(np.uint8)


def _classes(image: Image.Image) -> np.ndarray:
    if image.mode not in ("P", "L", "1", "I", "I;16"):
        raise ValueError(
            f"a mask has one number a pixel (palette or grey), this one is {image.mode}"
        )
    values = np.array(image)
    return values.astype(np.uint16 if image.mode in ("I", "I;16") else np.uint8)


@functools.cache
def voc_palette() -> np.ndarray:
    """(256, 3) uint8, PASCAL VOC's colours: three bits of the label at a time, from the highest bit
    of each channel down."""
    labels = np.arange(256)
    colours = np.zeros((256, 3), np.uint8)
    for bit in range(8):
        for channel in range(3):
            colours[:, channel] |= (((labels >> (3 * bit + channel)) & 1) << (7 - bit)).astype(
                np.uint8
            )
    return colours


TASK = Segmentation()
