"""``normal``: surface normals.

A label is (3, H, W) float32 unit vectors, axes ``dense_maps.geometry.AXES``, zero where unknown.
"""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from backbones.cliptex.data.augment import Geometry, warp_normals
from backbones.cliptex.tasks.angmf import angle, expected_angle
from backbones.cliptex.tasks.base import Summed, Task
from common.dense_maps.pictures import normal_picture
from common.dense_maps.read import read_rgb


class Normal(Task):
    """Directions, learned by their angle."""

    name = "normal"
    suffix = "webp"
    quantisation = "octahedral, 2 × 8 bits: at most 0.95 degrees"
    missing = torch.zeros(3, 1, 1, dtype=torch.int8)

    def channels(self, classes: Sequence[str]) -> int:
        return 3

    def activate(self, output: Tensor) -> Tensor:
        return F.normalize(output.float(), dim=1, eps=1e-6)

    def loss(self, prediction: Tensor, target: Tensor) -> Summed:
        """Sum of angles in radians (Bae et al. 2021, ICCV, eq. 4) and number of labelled pixels.

        Args:
            prediction: (N, 3, H, W), of any length.
            target: (N, 3, H, W) unit normals, zero where unknown.
        """
        valid = _valid(target)
        angles = angle(F.normalize(prediction.float(), dim=1, eps=1e-6), target.float())
        return torch.where(valid, angles, 0.0).sum(), valid.sum().float()

    def count(self, target: Tensor) -> Tensor:
        return _valid(target).sum().float()

    def warp(self, maps: Sequence[Tensor], geometry: Geometry, size: int) -> Tensor:
        return warp_normals([each.float() / 127 for each in maps], geometry, size)

    def read(self, path: Path) -> np.ndarray:
        """An 8-bit RGB PNG, n = png / 127.5 - 1, axes as of labels; (0, 0, 0) is unknown."""
        code = read_rgb(path)
        normal = code.astype(np.float32) / 127.5 - 1
        normal /= np.linalg.norm(normal, axis=-1, keepdims=True)
        return np.moveaxis(np.where(code.any(-1, keepdims=True), normal, 0), -1, 0)

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

    def score(
        self, outputs: Mapping[str, np.ndarray], target: np.ndarray, classes: int = 0
    ) -> dict[str, float]:
        """``normal_mean``, ``normal_median`` in degrees, ``normal_11.25`` in per cent.

        With a ``confidence`` also ``kappa_expected``: the mean angle that κ predicts, in degrees,
        to compare with ``normal_mean``.
        """
        valid = np.square(target).sum(1) > 0.25
        chord = np.linalg.norm(outputs["normal"] - target, axis=1)[valid]
        angles = np.degrees(2 * np.arcsin(np.clip(chord / 2, 0, 1)))
        metrics = {
            "normal_mean": float(angles.mean()),
            "normal_median": float(np.median(angles)),
            "normal_11.25": 100 * float(np.mean(angles < 11.25)),
        }
        if "confidence" in outputs:
            expected = expected_angle(torch.from_numpy(outputs["confidence"][valid])).mean()
            metrics["kappa_expected"] = math.degrees(float(expected))
        return metrics

    def picture(self, label: np.ndarray, image: np.ndarray) -> np.ndarray:
        return normal_picture(label)


def _valid(target: Tensor) -> Tensor:
    return (target * target).sum(1) > 0.25


def octahedral(normals: np.ndarray) -> np.ndarray:
    """Unit vectors (3, H, W) → the octahedron unfolded to the square [-1, 1]², (2, H, W).

    Cigolle et al., "A Survey of Efficient Representations for Independent Unit Vectors", JCGT 2014.
    """
    p = normals[:2] / np.maximum(np.abs(normals).sum(0), 1e-12)
    folded = (1 - np.abs(p[::-1])) * np.where(p >= 0, 1, -1)
    return np.where(normals[2] < 0, folded, p)


def from_octahedral(p: np.ndarray) -> np.ndarray:
    """Inverse of :func:`octahedral`: (2, H, W) in [-1, 1] → unit vectors (3, H, W) float32."""
    n = np.concatenate([p, 1 - np.abs(p).sum(0, keepdims=True)]).astype(np.float32)
    fold = np.maximum(-n[2], 0)
    n[:2] -= np.where(n[:2] >= 0, fold, -fold)
    return n / np.linalg.norm(n, axis=0, keepdims=True)


TASK = Normal()
