"""One geometric augmentation for an image and all its labels: random resized crop and flip.

Crops are square in pixels, so that surface normals keep their meaning: a crop and a uniform change
of size leave them as they are, a flip negates x.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from cliptex_common.dense_maps.geometry import MIRRORED

IGNORE = -100  # of targets of classes, as of torch's cross-entropy; in files it is ``UNKNOWN``


@dataclass(frozen=True)
class Geometry:
    """What is done to each of N images, in fractions of the image, so that label maps of any
    resolution can follow.

    Attributes:
        box: (N, 4) float32: centre x, centre y, width and height of the crop, as shares of the
            image's own.
        flip: (N,) bool, left-right.
    """

    box: Tensor
    flip: Tensor

    def __getitem__(self, rows: slice) -> Geometry:
        return Geometry(self.box[rows], self.flip[rows])


def random_geometry(
    indices: Sequence[int],
    sizes: Sequence[tuple[int, int]],
    *,
    seed: int,
    epoch: int | np.ndarray,
    scale: tuple[float, float] = (0.9, 1.0),
    flip: float = 0.5,
) -> Geometry:
    """Draw an augmentation for each image from (seed, epoch, its index) alone, whoever else is in
    the batch.

    Args:
        indices: the images' indices in their source.
        sizes: (height, width) of each, any unit.
        epoch: of all, or of each.
        scale: range of the crop's area, as a share of the largest square that fits.
        flip: probability of a flip.
    """
    box = np.empty((len(indices), 4), np.float32)
    draws = np.empty((len(indices), 4))
    for row, (index, number) in enumerate(
        zip(indices, np.broadcast_to(epoch, len(indices)), strict=True)
    ):
        draws[row] = np.random.Generator(
            np.random.Philox(key=[seed, (int(number) << 40) + int(index)])
        ).random(4)
    height, width = np.asarray(sizes, np.float64).T
    side = np.minimum(height, width) * np.sqrt(scale[0] + draws[:, 0] * (scale[1] - scale[0]))
    box[:, 2], box[:, 3] = side / width, side / height
    box[:, 0] = box[:, 2] / 2 + draws[:, 1] * (1 - box[:, 2])
    box[:, 1] = box[:, 3] / 2 + draws[:, 2] * (1 - box[:, 3])
    return Geometry(torch.from_numpy(box), torch.from_numpy(draws[:, 3] < flip))


def centre_geometry(sizes: Sequence[tuple[int, int]], *, squash: bool = False) -> Geometry:
    """For evaluation: the largest centred square of each image of (height, width), or the complete
    image if it is to be squashed into a square."""
    height, width = np.asarray(sizes, np.float64).T
    side = np.minimum(height, width)
    extent = np.ones((2, len(side))) if squash else np.stack([side / width, side / height])
    box = np.stack([np.full_like(side, 0.5), np.full_like(side, 0.5), *extent], 1).astype(
        np.float32
    )
    return Geometry(torch.from_numpy(box), torch.zeros(len(side), dtype=torch.bool))


def crop_images(
    images: Sequence[np.ndarray], geometry: Geometry, size: int, interpolation: str = "bicubic"
) -> Tensor:
    """Images, uint8 (H, W, 3) each → (N, 3, size, size) uint8: each crop resampled once and
    antialiased, straight from the image, as the preprocessing of CLIP does it."""
    resampling = Image.Resampling[interpolation.upper()]
    out = torch.empty(len(images), 3, size, size, dtype=torch.uint8)
    for row, image in enumerate(images):
        height, width = image.shape[:2]
        x, y, w, h = geometry.box[row].tolist()
        left, upper = max(0.0, (x - w / 2) * width), max(0.0, (y - h / 2) * height)
        right, lower = min(width, (x + w / 2) * width), min(height, (y + h / 2) * height)
        box = (left, upper, right, lower)
        crop = Image.fromarray(image).resize((size, size), resampling, box=box)
        pixels = torch.from_numpy(np.array(crop)).permute(2, 0, 1)
        out[row] = pixels.flip(2) if geometry.flip[row] else pixels
    return out


def warp_images(images: Tensor | Sequence[Tensor], geometry: Geometry, size: int) -> Tensor:
    """Images, uint8 or float (C, H, W) each, → (N, C, size, size) float32 in the same value range;
    bilinear.
    """
    return _warp(images, geometry, size, "bilinear")


def warp_classes(
    maps: Tensor | Sequence[Tensor], geometry: Geometry, size: int, ignore: int = 255
) -> Tensor:
    """Class maps (H, W) each → (N, size, size) int64; nearest; ``ignore`` becomes ``IGNORE``."""
    sampled = _warp([m[None].float() for m in maps], geometry, size, "nearest")[:, 0].long()
    return sampled.masked_fill_(sampled == ignore, IGNORE)


def warp_depth(maps: Tensor | Sequence[Tensor], geometry: Geometry, size: int) -> Tensor:
    """Depth-like maps (H, W) each, NaN where unknown → (N, size, size) float32, NaN where unknown.

    Nearest: an average over a depth edge would be a surface that is not there.
    """
    return _warp([m[None].float() for m in maps], geometry, size, "nearest")[:, 0]


def warp_normals(maps: Tensor | Sequence[Tensor], geometry: Geometry, size: int) -> Tensor:
    """Normal maps (3, H, W) each, axes ``dense_maps.geometry.AXES``, zero where unknown → (N, 3,
    size, size).

    Nearest; x is negated by a flip.
    """
    sampled = _warp([m.float() for m in maps], geometry, size, "nearest")
    signs = torch.where(geometry.flip[:, None], torch.tensor(MIRRORED), 1.0)
    return sampled * signs[:, :, None, None]


def _warp(maps: Tensor | Sequence[Tensor], geometry: Geometry, size: int, mode: str) -> Tensor:
    """Sample each map (C, H, W) on its own crop: one call where all have one size, else one
    each."""
    if isinstance(maps, Tensor) or len({m.shape for m in maps}) == 1:
        stacked = maps if isinstance(maps, Tensor) else torch.stack(tuple(maps))
        grid = _grid(geometry, size)
        return F.grid_sample(
            stacked.float(), grid, mode=mode, padding_mode="border", align_corners=False
        )
    rows = [_warp(m[None], geometry[i : i + 1], size, mode) for i, m in enumerate(maps)]
    return torch.cat(rows)


def _grid(geometry: Geometry, size: int) -> Tensor:
    """(N, size, size, 2) positions in grid_sample's coordinates: source = centre + extent · F ·
    output."""
    sign = 1 - 2 * geometry.flip.float()
    theta = torch.zeros(len(sign), 2, 3)
    theta[:, 0, 0], theta[:, 1, 1] = geometry.box[:, 2] * sign, geometry.box[:, 3]
    theta[:, :, 2] = geometry.box[:, :2] * 2 - 1
    return F.affine_grid(theta, [len(theta), 1, size, size], align_corners=False)
