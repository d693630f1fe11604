"""``tokencut``, without training: the patches of an image fall into an object and the rest.

TokenCut (Wang et al., CVPR 2022; ``object_discovery.py`` of YangtaoWANG95/TokenCut): patches are
joined with weight 1 where the cosine of their features is above a threshold, and 1e-5 elsewhere.
The second smallest eigenvector of the normalised cut splits them at its mean; the object is on the
side of its largest entry, and what is connected with that patch counts.

CorLoc is the share of images in which the box around it and that of any object overlap by at least
half (IoU). Of masks IoU, and F of the boundary (``contour_accuracy``), against all objects
together. The features are the backbone's map, where the authors take keys of DINO's last block.
The ceiling is the best box, and the set of patches with the highest IoU (F is that of this set),
on the same grid; the floor is the image as one object.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import product
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw
from scipy import ndimage
from scipy.linalg import eigh
from torch import Tensor
from torchvision.ops import box_iou
from torchvision.transforms.functional import pil_to_tensor

from cliptex_common.images import image_size, read_classes, spread_indices, write_grid
from cliptex_common.progress import Silent
from probes.base import Context, TaskResult, map_index
from probes.image_level.encode import ImageViews
from probes.matching.probe import grouping
from probes.matching.videos import contour_accuracy, overlay, region_similarity
from probes.matching.views import RIGHT
from probes.pictures import GALLERY_IMAGES, write_gallery

WEAK = 1e-5  # weight of patches that are not alike
SHOWN = 6  # images of the preview
Size = tuple[int, int]  # height, width


def run(context: Context) -> TaskResult:
    """See ``probes.base.FeatureProbe``."""
    samples, views = context.data.samples["val"], ObjectViews(context)
    context.progress.start("cutting images", len(samples))
    rows: dict[int, dict[str, float]] = {}
    shown, predicted = set(spread_indices(len(samples), GALLERY_IMAGES)), {}
    for item, (features,), _ in views.items([views.every], progress=Silent()):
        width, height = image_size(views.path(item))
        cells = cut(features, context.settings.threshold)
        rows_seen, columns_seen = views.sizes[item]
        seen, shape = (rows_seen, columns_seen), (cells.shape[0], cells.shape[1])
        grid = Grid(shape, seen, (height, width), context.backbone.divisor)
        rows[item] = {}
        objects = samples[item].target
        if objects.boxes:
            rows[item] |= box_scores(grid.box(cells), grid, np.array(objects.boxes, float))
        if objects.mask:
            rows[item] |= mask_scores(cells, grid, read_classes(context.data.root / objects.mask))
        if item in shown:
            predicted[item] = grid.fill(cells), grid.box(cells)
        context.progress.advance()
    names = tuple(sample.image for sample in samples)
    columns = sorted({name for row in rows.values() for name in row})
    per_image = {
        name: np.array([rows[item].get(name, np.nan) for item in views.every]) for name in columns
    }
    per_image["image"] = np.array(names)
    metrics = grouping(names, per_image).values()
    bounds = (
        f"{name}: {metrics[f'floor_{name}']:.1f} if the image is one object,"
        f" {metrics[f'ceiling_{name}']:.1f} at best on its grid"
        for name in ("CorLoc", "IoU")
        if name in metrics
    )
    preview = draw_cuts(context, predicted)
    return TaskResult(metrics, per_image, preview=preview, notes=["; ".join(bounds)])


class ObjectViews(ImageViews):
    """The feature maps of images of their own shape, padded at the right and below with the mean
    colour to a multiple of the backbone's divisor."""

    def __init__(self, context: Context) -> None:
        backbone, index = context.backbone, map_index(context.settings, context.backbone)

        def encode(pixels: Tensor) -> Tensor:
            rows, columns = (-side % backbone.divisor for side in pixels.shape[2:])
            return backbone(F.pad(pixels, (0, columns, 0, rows)))[index]

        paths = [context.data.root / sample.image for sample in context.data.samples["val"]]
        encoding = replace(context.settings.encoding(context.device.type), size=None)
        super().__init__(context, backbone, paths, encoding, context.data.spec.name, encode)
        self.long = context.settings.size
        self.transform = self._resized
        self.sizes = [self._size(*image_size(path)) for path in paths]

    def _size(self, width: int, height: int) -> Size:
        factor = self.long / max(width, height) if self.long else 1.0
        return max(1, round(factor * height)), max(1, round(factor * width))

    def _resized(self, image: Image.Image) -> Tensor:
        height, width = self._size(*image.size)
        return pil_to_tensor(image.resize((width, height), Image.Resampling.BICUBIC))


class Grid:
    """A grid of patches over an image that was resized to ``seen`` and padded to multiples of
    ``divisor``; positions are in pixels of the image, ``size`` (height, width)."""

    def __init__(self, shape: Sequence[int], seen: Size, size: Size, divisor: int) -> None:
        padded = [side + -side % divisor for side in seen]
        sides = [
            own * whole / part / count
            for own, whole, part, count in zip(size, padded, seen, shape, strict=True)
        ]
        self.shape, self.size = tuple(shape), size
        self.edges = [
            np.minimum(np.arange(count + 1) * side, own)
            for count, side, own in zip(shape, sides, size, strict=True)
        ]
        self.index = [
            ((np.arange(own) + 0.5) / side).astype(int)
            for own, side in zip(size, sides, strict=True)
        ]

    def box(self, cells: np.ndarray) -> np.ndarray:
        """(4,) left, top, right, bottom of what is True in cells (h, w)."""
        spans = []
        for edges, axis in zip(reversed(self.edges), (0, 1), strict=True):
            inside = np.flatnonzero(cells.any(axis=axis))
            spans.append((edges[inside[0]], edges[inside[-1] + 1]))
        return np.array(spans).T.flatten()

    def fill(self, cells: np.ndarray) -> np.ndarray:
        """The cells of the pixels, (H, W)."""
        rows, columns = self.index
        return cells[rows][:, columns]

    def around(self, box: np.ndarray) -> np.ndarray:
        """(16, 4) boxes whose edges are those of the grid next to those of a box; the best box on
        the grid is one of them."""
        candidates = []
        for number, value in enumerate(box):
            edges = self.edges[1 - number % 2]
            after = int(np.searchsorted(edges, value).clip(1, len(edges) - 1))
            candidates.append((edges[after - 1], edges[after]))
        return np.array(list(product(*candidates)))


def cut(features: Tensor, threshold: float) -> np.ndarray:
    """The patches of the object, (h, w) bool, of a feature map (C, h, w); all of fewer than three,
    which no eigenvector splits."""
    grid = features.shape[1:]
    if grid.numel() < 3:
        return np.ones(tuple(grid), bool)
    vectors = F.normalize(features.flatten(1).T.float(), dim=1)
    weights = np.where((vectors @ vectors.T > threshold).cpu().numpy(), 1.0, WEAK)
    degrees = np.diag(weights.sum(axis=1))
    vector = eigh(degrees - weights, degrees, subset_by_index=[1, 2])[1][:, 0]
    seed = np.abs(vector).argmax()
    side = vector > vector.sum() / len(vector)
    if not side[seed]:
        side = ~side
    components, _ = ndimage.label(side.reshape(grid))
    return components == components.flat[seed]


def overlaps(boxes: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """IoU (N, M) of boxes (N, 4) and (M, 4): left, top, right, bottom."""
    first, second = (torch.from_numpy(each).double() for each in (boxes, targets))
    # a box without area may be of the grid, too
    return box_iou(first, second).nan_to_num().numpy()


def box_scores(box: np.ndarray, grid: Grid, objects: np.ndarray) -> dict[str, float]:
    """``CorLoc`` of a box (4,) against those of objects (N, 4), its ceiling and its floor: 1 or
    0."""
    height, width = grid.size
    best = np.concatenate([grid.around(each) for each in objects])
    candidates = {
        "CorLoc": box[None],
        "ceiling_CorLoc": best,
        "floor_CorLoc": np.array([[0, 0, width, height]]),
    }
    return {name: float((overlaps(b, objects) >= 0.5).any()) for name, b in candidates.items()}


def mask_scores(cells: np.ndarray, grid: Grid, classes: np.ndarray) -> dict[str, float]:
    """``IoU``, its ceiling and its floor, ``F`` and its ceiling, 0 to 1, of cells (h, w) against a
    map of classes (H, W); none without an object."""
    valid, target = classes != 255, (classes > 0) & (classes != 255)
    if not target.any():
        return {}
    numbers = grid.fill(np.arange(cells.size).reshape(cells.shape))[valid]
    areas, objects = (
        np.bincount(numbers, weights, cells.size)
        for weights in (np.ones(len(numbers)), target[valid])
    )
    # of the sets of patches with the largest shares of objects one has the highest IoU
    order = np.argsort(-objects / areas.clip(min=1), kind="stable")
    shared, area = objects[order].cumsum(), areas[order].cumsum()
    ious = shared / (objects.sum() + area - shared)
    best = np.zeros(cells.size, bool)
    best[order[: ious.argmax() + 1]] = True
    mask, best_mask = grid.fill(cells), grid.fill(best.reshape(cells.shape))
    return {
        "IoU": region_similarity(target[valid], mask[valid]),
        "F": contour_accuracy(target, mask, valid),
        "ceiling_IoU": float(ious.max()),
        "ceiling_F": contour_accuracy(target, best_mask, valid),
        "floor_IoU": float(target[valid].mean()),
    }


def draw_cuts(context: Context, predicted: dict[int, tuple[np.ndarray, np.ndarray]]) -> Path:
    """Write the preview and the gallery; the path of the preview.

    Args:
        predicted: number of a sample → the mask (H, W) and the box of its object.
    """
    root, samples = context.data.root, context.data.samples["val"]

    def picture(item: int, mask: np.ndarray, boxes: Sequence[Sequence[float]]) -> np.ndarray:
        sheet = Image.fromarray(overlay(root / samples[item].image, mask.astype(np.uint8)))
        pen = ImageDraw.Draw(sheet)
        for box in boxes:
            pen.rectangle([*box], outline=RIGHT, width=3)
        return np.asarray(sheet)

    def pictures(item: int) -> dict[str, np.ndarray]:
        mask, box = predicted[item]
        objects, nothing = samples[item].target, np.zeros_like(mask)
        classes = read_classes(root / objects.mask) if objects.mask else nothing
        return {
            "image": picture(item, nothing, ()),
            "truth": picture(item, (classes > 0) & (classes != 255), objects.boxes),
            "prediction": picture(item, mask, [box.tolist()]),
        }

    items = sorted(predicted)
    path = context.work_dir / "preview.png"
    write_gallery(path.parent, ((samples[item].image, pictures(item)) for item in items))
    rows = [items[index] for index in spread_indices(len(items), SHOWN)]
    return write_grid(
        path,
        ("image", "objects", "cut"),
        [list(pictures(item).values()) for item in rows],
        [samples[item].image for item in rows],
    )
