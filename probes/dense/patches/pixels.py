"""From patches to the pixels of a label map and back."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import interpolate

from cliptex_common.device import upload
from cliptex_common.errors import UserError


@dataclass(frozen=True)
class Patches:
    """An image's patches.

    Attributes:
        index: of the image in its split.
        features: (rows × columns, D) float32 on the device; cells of padding alone are left out.
        grid: (rows, columns).
        extent: rows and columns that the image itself fills, which may be fractions.
        size: (height, width) of the label map that they are compared with.
        original: (height, width) of the stored label map.
        crop: number of the crop of the image; none for all of it.
    """

    index: int
    features: Tensor
    grid: tuple[int, int]
    extent: tuple[float, float]
    size: tuple[int, int]
    original: tuple[int, int] = (0, 0)
    crop: int | None = None


def resize_labels(labels: np.ndarray, side: int, resize: str) -> np.ndarray:
    """(H, W) labels → (side, side), nearest: at the centres of pixels as Pillow does it, or for
    ``square-bilinear`` at their corners as torchvision resizes tensors."""
    if resize == "square-bilinear":
        batch = torch.from_numpy(labels.astype(np.float32))[None, None]
        return interpolate(batch, size=(side, side), mode="nearest")[0, 0].numpy()
    image = Image.fromarray(labels.astype(np.int32))
    return np.asarray(image.resize((side, side), Image.Resampling.NEAREST))


def class_shares(
    labels: Tensor,
    patches: Patches,
    classes: int,
    ignore_index: int,
    void: str = "ignore",
    void_first: bool = False,
) -> tuple[Tensor, Tensor]:
    """The part of each patch's pixels that each class has.

    Args:
        labels: (H, W) int64; nothing is resized.
        void: what pixels without a label are; see ``PatchSettings``.
        void_first: whether a patch with as many void pixels as of its largest class is left out
            with ``void="vote"``.
    Returns:
        (rows × columns, classes) float32, or classes + 1 where void is a class, and (rows ×
        columns,) whether a patch is of a class.
    """
    rows, columns = (
        ((torch.arange(side) + 0.5) / side * part).long().clamp_max(count - 1)
        for side, part, count in zip(labels.shape, patches.extent, patches.grid, strict=True)
    )
    cell = rows[:, None] * patches.grid[1] + columns
    labels = torch.where(labels == ignore_index, classes, labels)
    cells = patches.grid[0] * patches.grid[1]
    flat = (cell * (classes + 1) + labels).flatten()
    counts = torch.bincount(flat, minlength=cells * (classes + 1)).view(cells, classes + 1).float()
    pixels = counts.sum(dim=1)
    if void == "ignore":
        counts = counts[:, :classes]
        labelled = counts.sum(dim=1)
        remembered = (labelled > 0) & (2 * labelled >= pixels)
        return counts / labelled.clamp_min(1)[:, None], remembered
    remembered = pixels > 0
    if void == "vote":
        largest = counts[:, :classes].amax(dim=1)
        is_void = counts[:, classes] >= largest if void_first else counts[:, classes] > largest
        remembered &= ~is_void
    if void == "background":
        counts[:, 0] += counts[:, classes]
        counts = counts[:, :classes]
    return counts / pixels.clamp_min(1)[:, None], remembered


def pixel_labels(labels: Tensor, patches: Patches) -> Tensor:
    """(H, W) labels → (rows × columns, pixels of a patch).

    Raises:
        UserError: patches do not have equally many pixels.
    """
    (height, width), (rows, columns) = patches.size, patches.grid
    if height % rows or width % columns or patches.extent != patches.grid:
        raise UserError(
            f"votes=pixels: label maps of {width}×{height} px do not divide into {columns}×{rows}"
            " patches; set another score_size"
        )
    blocks = labels.view(rows, height // rows, columns, width // columns)
    return blocks.transpose(1, 2).flatten(2).flatten(0, 1)


def pixel_map(labels: Tensor, patches: Patches) -> Tensor:
    """The inverse of ``pixel_labels``."""
    (height, width), (rows, columns) = patches.size, patches.grid
    blocks = labels.view(rows, columns, height // rows, width // columns)
    return blocks.transpose(1, 2).reshape(height, width)


def label_map(scores: Tensor, patches: Patches) -> Tensor:
    """(rows × columns, C) scores of patches → (H, W) int64: the best class of each pixel.

    Between patches scores are bilinear, by two products with small matrices.
    """
    down, across = (
        _interpolation(side, cells, part, scores.device)
        for side, cells, part in zip(patches.size, patches.grid, patches.extent, strict=True)
    )
    maps = scores.T.unflatten(1, patches.grid)
    return (down @ maps @ across.T).max(dim=0).indices


@functools.lru_cache(maxsize=32)  # images of one size follow each other
@torch.inference_mode(False)  # it is used where gradients are, too
def _interpolation(pixels: int, cells: int, extent: float, device: torch.device) -> Tensor:
    """(pixels, cells) float32 on the device: the weights of cells at each pixel's centre.

    Beyond the outer centres the outer cell's value holds.
    """
    centres = (torch.arange(pixels, dtype=torch.float64) + 0.5) / pixels * extent - 0.5
    positions = centres.clamp(0, cells - 1)
    lower = positions.floor().long().clamp_max(max(cells - 2, 0))
    share = positions - lower
    weights = torch.zeros(pixels, cells, dtype=torch.float64)
    weights.scatter_(1, lower[:, None], (1 - share)[:, None])
    weights.scatter_add_(1, (lower + 1).clamp_max(cells - 1)[:, None], share[:, None])
    return upload(weights.float(), device)


def windows(size: Sequence[int], slide: tuple[int, ...]) -> list[tuple[slice, slice]]:
    """Rows and columns of the windows over an image of ``size`` (height, width).

    The last of a row or a column is moved back to end with the image.

    Args:
        slide: (side, stride); empty for one window.
    """
    side, stride = slide or (max(size), max(size))
    along = []
    for length in size:
        last = max(length - side, 0)
        starts = [min(start, last) for start in range(0, last + stride, stride)]
        along.append([slice(start, min(start + side, length)) for start in starts])
    return list(product(*along))


def average_windows(scores: Tensor, size: tuple[int, int], slide: tuple[int, ...]) -> Tensor:
    """(windows, C, h, w) scores of an image's windows → (C, height, width) probabilities; see
    ``OpenVocabularySettings.slide``."""
    total, count = scores.new_zeros(scores.shape[1], *size), scores.new_zeros(size)
    for maps, window in zip(scores, windows(size, slide), strict=True):
        part = total[:, *window]
        part += interpolate(maps[None], size=part.shape[1:], mode="bilinear")[0].softmax(dim=0)
        count[*window] += 1
    return total / count
