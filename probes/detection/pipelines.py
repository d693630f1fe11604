"""The steps between a file and a detector: what of them follows from settings, and what they do to
an image and its boxes, without MMDetection, which takes six seconds to import.

``apply_steps`` gives the image and the boxes that MMDetection's own transforms give from the same
state of numpy's random numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import compress
from typing import Any

import mmcv
import numpy as np
from mmcv import transforms

from probes.detection.settings import MaskRCNNSettings, SSDSettings

Step = dict[str, Any]  # config of a transform
Item = dict[str, Any]  # see ``apply_steps``
AUGMENTATION = ("Expand", "MinIoURandomCrop", "PhotoMetricDistortion")


def complete_pipeline(
    steps: list[Step], settings: MaskRCNNSettings | SSDSettings, mean: list[float]
) -> None:
    """Sizes and augmentation of a pipeline. ``mean`` is the colour (R, G, B, 0–255) around an image
    that is zoomed out."""
    if isinstance(settings, MaskRCNNSettings):
        scale = (settings.long_side, settings.short_side)
    else:
        scale = (settings.size, settings.size)
    for step in list(steps):
        if step["type"] == "Resize":
            step["scale"] = scale
        elif step["type"] == "Expand":
            step["mean"] = mean
        if step["type"] in AUGMENTATION and not getattr(settings, "augment", True):
            steps.remove(step)


def instances_of(image: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The annotations of an image that a detector sees: those with an area inside of it.

    Args:
        image: see ``cliptex_common.images.read_instances``.
    """
    instances = []
    for annotation in image["annotations"]:
        x, y, width, height = annotation["bbox"]
        inside_x = min(x + width, image["width"]) - max(x, 0)
        inside_y = min(y + height, image["height"]) - max(y, 0)
        has_area = min(inside_x, inside_y, annotation["area"]) > 0 and min(width, height) >= 1
        if has_area and not annotation.get("ignore"):
            instances.append(annotation)
    return instances


def apply_steps(steps: Sequence[Step], item: Item) -> Item:
    """The item after the steps of a pipeline.

    Args:
        item: ``img_path``, and of its N objects ``instances``, their annotations, ``gt_bboxes``
            (N, 4) float32 corners, and ``masks``, N of (H, W) uint8, or none.

    Returns:
        Also ``img`` (H, W, 3) BGR; fewer objects where some are cut off.
    """
    for step in steps:
        options = {name: value for name, value in step.items() if name != "type"}
        if step["type"] in OWN:
            item = OWN[step["type"]](item, **options)
        elif step["type"] not in AROUND:
            item = getattr(transforms, step["type"])(**options)(item)
    return item


def _vector(values: Sequence[float]) -> np.ndarray:
    return np.array(values, np.float32)


def _select(item: Item, rows: np.ndarray) -> Item:
    """The item with some of its objects; ``rows`` is (N,) bool."""
    lists = {name: list(compress(item[name], rows)) for name in ("instances", "masks")}
    return {**item, **lists, "gt_bboxes": item["gt_bboxes"][rows]}


def _resize(item: Item, **options: Any) -> Item:
    image = transforms.Resize(**options)({"img": item["img"]})
    size = image["img"].shape[1::-1]
    boxes = item["gt_bboxes"] * np.tile(_vector(image["scale_factor"]), 2)
    masks = [mmcv.imresize(mask, size, interpolation="nearest") for mask in item["masks"]]
    return {**item, "img": image["img"], "gt_bboxes": _clip(boxes, size), "masks": masks}


def _clip(boxes: np.ndarray, size: Sequence[int]) -> np.ndarray:
    """The part of boxes (N, 4) in an image of ``size`` (width, height)."""
    return boxes.clip(0, np.tile(_vector(size), 2))


def _flip(item: Item, **options: Any) -> Item:
    item = transforms.RandomFlip(**options)(item)
    if item["flip"]:
        item["masks"] = [mmcv.imflip(mask, item["flip_direction"]) for mask in item["masks"]]
    return item


def _expand(item: Item, mean: Sequence[float]) -> Item:
    """Of every second image: a canvas of up to four times its sides, in the colour ``mean``."""
    if np.random.uniform(0, 1) > 0.5:
        return item
    image, ratio = item["img"], np.random.uniform(1, 4)
    height, width = image.shape[:2]
    canvas = np.full((int(height * ratio), int(width * ratio), 3), mean[::-1], image.dtype)
    left = int(np.random.uniform(0, width * ratio - width))
    top = int(np.random.uniform(0, height * ratio - height))
    canvas[top : top + height, left : left + width] = image
    boxes = item["gt_bboxes"] + _vector([left, top, left, top])
    return {**item, "img": canvas, "gt_bboxes": boxes}


def _crop(item: Item) -> Item:
    """A part of the image with the objects whose middle it has, all of which it overlaps by some
    IoU; or the complete image."""
    image, boxes = item["img"], item["gt_bboxes"]
    height, width = image.shape[:2]
    while True:
        least = np.random.choice((1, 0.1, 0.3, 0.5, 0.7, 0.9, 0))
        if least == 1:
            return item
        for _ in range(50):
            new_width = np.random.uniform(0.3 * width, width)
            new_height = np.random.uniform(0.3 * height, height)
            if not 0.5 <= new_height / new_width <= 2:
                continue
            left = np.random.uniform(width - new_width)
            top = np.random.uniform(height - new_height)
            x1, y1, x2, y2 = map(int, (left, top, left + new_width, top + new_height))
            is_empty = x1 == x2 or y1 == y2
            if is_empty or (len(boxes) and _overlaps(boxes, (x1, y1, x2, y2)).min() < least):
                continue
            x, y = ((boxes[:, side] + boxes[:, side + 2]) / 2 for side in (0, 1))
            inside = (x > x1) & (y > y1) & (x < x2) & (y < y2)
            if len(boxes) and not inside.any():
                continue
            item = _select(item, inside)
            moved = item["gt_bboxes"] - _vector([x1, y1, x1, y1])
            part = image[y1:y2, x1:x2]
            return {**item, "img": part, "gt_bboxes": _clip(moved, part.shape[1::-1])}


def _overlaps(boxes: np.ndarray, part: Sequence[int]) -> np.ndarray:
    """IoU (N,) of boxes (N, 4) with a part of their image."""
    corners = _vector(part)
    starts, ends = np.maximum(boxes[:, :2], corners[:2]), np.minimum(boxes[:, 2:], corners[2:])
    shared = (ends - starts).clip(0).prod(axis=1)
    areas = (boxes[:, 2:] - boxes[:, :2]).prod(axis=1) + (corners[2:] - corners[:2]).prod()
    return shared / np.maximum(areas - shared, 1e-6)


def _distort(item: Item) -> Item:
    """Random brightness, contrast, saturation, hue and order of channels."""
    image = item["img"].astype(np.float32)
    order, *flags = (np.random.randint(2) for _ in range(6))
    brightness, contrast, saturation, hue, swap = flags
    values = [np.random.uniform(*ends) for ends in ((-32, 32), (0.5, 1.5), (0.5, 1.5), (-18, 18))]
    channels = np.random.permutation(3)
    image += values[0] * brightness
    if contrast and order == 1:
        image *= values[1]
    image = mmcv.bgr2hsv(image)
    if saturation:
        image[..., 1] *= values[2]
        if values[2] > 1:
            image[..., 1] = image[..., 1].clip(0, 1)
    if hue:
        image[..., 0] += values[3]
        image[..., 0][image[..., 0] > 360] -= 360
        image[..., 0][image[..., 0] < 0] += 360
    image = mmcv.hsv2bgr(image)
    if contrast and order == 0:
        image *= values[1]
    return {**item, "img": image[..., channels] if swap else image}


def _filter(item: Item, min_gt_bbox_wh: Sequence[float], **_: Any) -> Item:
    sides = item["gt_bboxes"][:, 2:] - item["gt_bboxes"][:, :2]
    return _select(item, (sides > np.array(min_gt_bbox_wh)).all(axis=1))


# MMDetection's steps, with its fixed amounts, which are SSD's; others are mmcv's own
OWN: Mapping[str, Callable[..., Item]] = {
    "Resize": _resize,
    "RandomFlip": _flip,
    "Expand": _expand,
    "MinIoURandomCrop": _crop,
    "PhotoMetricDistortion": _distort,
    "FilterAnnotations": _filter,
}
AROUND = ("LoadAnnotations", "PackInstances")  # what is loaded already, and what a model gets
