"""Tasks of the known shapes: a class, a number or a direction for each pixel.

A subclass gives ``name``, ``loss`` and, for its expert, ``score``, and what is different about it.
"""

from __future__ import annotations

import io
from abc import abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from backbones.cliptex.data.augment import (
    IGNORE,
    Geometry,
    warp_classes,
    warp_depth,
    warp_normals,
)
from backbones.cliptex.tasks.base import Task
from cliptex_common.dense_maps.pictures import normal_picture, palette, scalar_picture
from cliptex_common.dense_maps.read import read_classes, read_rgb, read_scalars

STEPS = 65534  # of a 16-bit file, whose 0 is unknown


class KnownShape(Task):
    """What the shapes have in common."""

    @abstractmethod
    def valid(self, target: Tensor) -> Tensor:
        """Where a target is labelled: (N, size, size) bool."""

    def count(self, target: Tensor) -> Tensor:
        return self.valid(target).sum().float()


class ClassMap(KnownShape):
    """A class for each pixel.

    A label is (H, W) uint8 or uint16, the largest value of its type where unknown; a target is
    (N, size, size) int64, ``IGNORE`` where unknown. ``loss`` takes logits (N, classes, size, size).
    """

    has_classes = True
    missing = torch.full((1, 1), IGNORE, dtype=torch.int16)

    def output_channels(self, classes: Sequence[str]) -> int:
        return len(classes)

    def valid(self, target: Tensor) -> Tensor:
        return target != IGNORE

    def warp(self, maps: Sequence[Tensor], geometry: Geometry, size: int) -> Tensor:
        ignore = IGNORE if maps[0].dtype.is_signed else torch.iinfo(maps[0].dtype).max
        return warp_classes(maps, geometry, size, ignore=ignore)

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

    def picture(self, label: np.ndarray, image: np.ndarray) -> np.ndarray:
        """Classes in PASCAL VOC's colours over the image."""
        colours = palette(256)[label.astype(int) % 256]
        small = np.asarray(Image.fromarray(image).resize(label.shape[::-1]))
        blend = np.where((label > 0)[..., None], 0.3 * small + 0.7 * colours, small)
        return np.where((label == np.iinfo(label.dtype).max)[..., None], 0, blend).astype(np.uint8)


class ScalarMap(KnownShape):
    """A number for each pixel.

    A label is (H, W) float32 in ``value_range``, NaN where unknown; so is a target (N, size, size).
    ``loss`` takes (N, size, size), of any range.

    Attributes:
        value_range: smallest and largest value of a label.
    """

    value_range: ClassVar[tuple[float, float]] = (0.0, 1.0)
    quantisation = "65535 steps of the range"
    missing = torch.full((1, 1), torch.nan)

    def activate(self, output: Tensor) -> Tensor:
        return output.squeeze(1)

    def valid(self, target: Tensor) -> Tensor:
        return torch.isfinite(target)

    def warp(self, maps: Sequence[Tensor], geometry: Geometry, size: int) -> Tensor:
        return warp_depth(maps, geometry, size)

    def read(self, path: Path) -> np.ndarray:
        """A grey PNG, 8 or 16 bits: black is the smallest value, white the largest."""
        return read_scalars(path, *self.value_range)

    def encode(self, label: np.ndarray) -> bytes:
        """A 16-bit grey PNG in even steps, 0 where unknown."""
        valid, (low, high) = np.isfinite(label), self.value_range
        unit = np.clip(np.where(valid, (label - low) / (high - low), 0), 0, 1)
        file = io.BytesIO()
        steps = np.where(valid, 1 + np.rint(unit * STEPS), 0)
        Image.fromarray(steps.astype(np.uint16)).save(file, "PNG")
        return file.getvalue()

    def decode(self, data: bytes) -> np.ndarray:
        low, high = self.value_range
        steps = np.array(Image.open(io.BytesIO(data)), np.float32)
        values = low + (steps - 1) / STEPS * (high - low)
        return np.where(steps > 0, values, np.float32(np.nan))

    def to_tensor(self, label: np.ndarray) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(label, np.float32))

    def picture(self, label: np.ndarray, image: np.ndarray) -> np.ndarray:
        """In viridis, from dark to bright; black where unknown."""
        valid = np.isfinite(label)
        picture = scalar_picture(np.nan_to_num(label), *self.value_range, valid)
        return picture * valid[..., None]


class VectorMap(KnownShape):
    """A direction in space for each pixel.

    A label is (3, H, W) float32 unit vectors, axes ``dense_maps.geometry.AXES``, zero where
    unknown; so is a target (N, 3, size, size). ``loss`` takes unit vectors (N, 3, size, size).
    """

    suffix = "webp"
    quantisation = "octahedral, 2 × 8 bits: at most 0.95 degrees"
    missing = torch.zeros(3, 1, 1, dtype=torch.int8)

    def output_channels(self, classes: Sequence[str]) -> int:
        return 3

    def activate(self, output: Tensor) -> Tensor:
        return F.normalize(output.float(), dim=1, eps=1e-6)

    def valid(self, target: Tensor) -> Tensor:
        return (target * target).sum(1) > 0.25

    def warp(self, maps: Sequence[Tensor], geometry: Geometry, size: int) -> Tensor:
        exact = [each if each.is_floating_point() else each.float() / 127 for each in maps]
        return warp_normals(exact, geometry, size)

    def read(self, path: Path) -> np.ndarray:
        """An 8-bit RGB PNG, n = png / 127.5 - 1, axes as of labels; (0, 0, 0) is unknown."""
        code = read_rgb(path)
        vectors = code.astype(np.float32) / 127.5 - 1
        vectors /= np.linalg.norm(vectors, axis=-1, keepdims=True)
        return np.moveaxis(np.where(code.any(-1, keepdims=True), vectors, 0), -1, 0)

    def encode(self, label: np.ndarray) -> bytes:
        """A lossless WebP: octahedral map in red and green, 255 in blue; 0 where unknown."""
        length = np.linalg.norm(label, axis=0)
        valid = np.isfinite(length) & (length > 0.5)
        unit = np.where(
            valid,
            label / np.where(valid, length, 1),
            np.array([0, 0, 1], np.float32)[:, None, None],
        )
        # 254 steps, not 255: the axes – walls and floors – are then stored exactly
        code = (
            np.concatenate([np.rint(octahedral(unit) * 127 + 127), np.full((1, *valid.shape), 255)])
            * valid
        )
        file = io.BytesIO()
        # method 2: a tenth larger than 4, at a third of the time
        image = Image.fromarray(np.ascontiguousarray(np.moveaxis(code.astype(np.uint8), 0, -1)))
        image.save(file, "WEBP", lossless=True, quality=50, method=2, exact=True)
        return file.getvalue()

    def decode(self, data: bytes) -> np.ndarray:
        red, green, valid = np.moveaxis(
            np.array(Image.open(io.BytesIO(data)).convert("RGB")), -1, 0
        )
        code = np.stack([red, green]).astype(np.float32) / 127 - 1
        return from_octahedral(np.clip(code, -1, 1)) * (valid > 127)

    def to_tensor(self, label: np.ndarray) -> Tensor:
        """int8: 0.3° at worst."""
        return torch.from_numpy(np.rint(np.nan_to_num(label) * 127).astype(np.int8))

    def picture(self, label: np.ndarray, image: np.ndarray) -> np.ndarray:
        """(n + 1) / 2 as a colour."""
        return normal_picture(label)


def octahedral(vectors: np.ndarray) -> np.ndarray:
    """Unit vectors (3, H, W) → the octahedron unfolded to the square [-1, 1]², (2, H, W).

    Cigolle et al., "A Survey of Efficient Representations for Independent Unit Vectors", JCGT 2014.
    """
    p = vectors[:2] / np.maximum(np.abs(vectors).sum(0), 1e-12)
    folded = (1 - np.abs(p[::-1])) * np.where(p >= 0, 1, -1)
    return np.where(vectors[2] < 0, folded, p)


def from_octahedral(p: np.ndarray) -> np.ndarray:
    """Inverse of :func:`octahedral`: (2, H, W) in [-1, 1] → unit vectors (3, H, W) float32."""
    n = np.concatenate([p, 1 - np.abs(p).sum(0, keepdims=True)]).astype(np.float32)
    fold = np.maximum(-n[2], 0)
    n[:2] -= np.where(n[:2] >= 0, fold, -fold)
    return n / np.linalg.norm(n, axis=0, keepdims=True)
