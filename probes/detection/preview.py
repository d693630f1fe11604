"""A picture of some validation images: the truth at the left, what was found at the right."""

from __future__ import annotations

import colorsys
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from faster_coco_eval import COCO
from matplotlib import get_data_path
from PIL import Image
from torch import Tensor
from torchvision.transforms.functional import pil_to_tensor, resize
from torchvision.utils import draw_bounding_boxes, draw_segmentation_masks

from probes.pictures import GALLERY, evenly, write_gallery, write_preview

IMAGES = 6
SIDE = 400  # longest side of a picture, pixels
SMALL = 256  # of a picture in the gallery: names must be readable
SCORE_THRESHOLD = 0.3
MOST = 10
FONT = Path(get_data_path(), "fonts/ttf/DejaVuSans.ttf")


def draw_preview(
    path: Path,
    root: Path,
    ann_file: str,
    images: Mapping[int, str],
    detections: Sequence[Mapping[str, Any]],
    masks: bool,
) -> Path:
    """Write a PNG: up to six images with objects, evenly spaced over ``images``, two in a row; and up to 48 of
    them, smaller, into ``gallery.zip`` beside it (``probes.pictures.write_gallery``).

    Args:
        path: where to.
        root: of the dataset.
        ann_file: COCO annotation file.
        images: image id → path relative to ``root``.
        detections: COCO result list; of each image what ``shown`` chooses is drawn.
        masks: draw masks too.
    """
    truth = COCO(ann_file)
    names = {identity: category["name"] for identity, category in truth.cats.items()}
    colours = {identity: colour_of(place, len(names)) for place, identity in enumerate(sorted(names))}
    with_objects = [image for image in images if truth.imgToAnns[image]] or list(images)
    of_image: dict[int, list[Mapping[str, Any]]] = defaultdict(list)
    for one in detections:
        of_image[one["image_id"]].append(one)

    def drawn(image: int, side: int) -> dict[str, np.ndarray]:
        with Image.open(Path(root, images[image])) as opened:
            picture = pil_to_tensor(opened.convert("RGB"))
        both = {"truth": list(truth.imgToAnns[image]), "prediction": shown(of_image[image])}
        found = {"image": resize(picture, _fitting(picture, side), antialias=True)}
        for role, objects in both.items():
            inside = [torch.from_numpy(truth.annToMask({"image_id": image, **one})).bool() for one in objects if masks]
            found[role] = annotate(picture, objects, inside, names, colours, side)
        return {role: one.permute(1, 2, 0).numpy() for role, one in found.items()}

    chosen = [with_objects[place] for place in evenly(len(with_objects), GALLERY)]
    write_gallery(path.with_name("gallery.zip"), ((images[one], drawn(one, SMALL)) for one in chosen), side=SMALL)
    pairs = [drawn(with_objects[place], SIDE) for place in evenly(len(with_objects), IMAGES)]
    flat = [pair[role] for pair in pairs for role in ("truth", "prediction")]
    titles = ("truth", f"prediction (score {SCORE_THRESHOLD} and more, or the best 3)") * min(2, len(pairs))
    rows = [flat[start : start + 4] for start in range(0, len(flat), 4)]
    return write_preview(path, titles, rows, side=SIDE)


def shown(found: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The detections worth drawing: the best ten with a score of 0.3 or more, else the best three; best last."""
    ranked = sorted(found, key=lambda one: one["score"])
    return [one for one in ranked if one["score"] >= SCORE_THRESHOLD][-MOST:] or ranked[-3:]


def annotate(
    picture: Tensor,
    objects: Sequence[Mapping[str, Any]],
    masks: Sequence[Tensor],
    names: Mapping[int, str],
    colours: Mapping[int, tuple[int, int, int]],
    longest: int = SIDE,
) -> Tensor:
    """``picture`` (3, H, W) uint8, resized to a longest side of ``longest`` px, with boxes, names and scores drawn in, and the
    ``masks`` (H, W) bool, one for each object, if there are any."""
    size = _fitting(picture, longest)
    factor = size[1] / picture.shape[2]
    drawn = resize(picture, size, antialias=True)
    paint = [colours[one["category_id"]] for one in objects]
    for mask, colour in zip(masks, paint, strict=False):  # one by one: where masks overlap torchvision paints black
        inside = resize(mask[None].float(), size, antialias=True) > 0.5
        drawn = draw_segmentation_masks(drawn, inside, alpha=0.5, colors=colour)
    if not objects:
        return drawn
    words = [
        names[one["category_id"]]
        + (" (crowd)" if one.get("iscrowd") else "")
        + (f" {one['score']:.2f}" if "score" in one else "")
        for one in objects
    ]
    boxes = torch.tensor([[x, y, x + width, y + height] for x, y, width, height in (one["bbox"] for one in objects)])
    return draw_bounding_boxes(
        drawn, boxes * factor, words, paint, width=2, font=str(FONT), font_size=12 if longest >= SIDE else 9,
        fill_labels=True, label_colors=["black" if sum(colour) > 380 else "white" for colour in paint],
    )  # fmt: skip


def colour_of(place: int, count: int) -> tuple[int, int, int]:
    """A colour (R, G, B) for the class at ``place`` of ``count``: neighbours get hues far apart."""
    hue = place * 0.618033988749895 % 1  # the golden ratio spreads any number of hues evenly
    red, green, blue = colorsys.hsv_to_rgb(hue, 0.65 if place % 2 else 0.95, 0.95)
    return round(255 * red), round(255 * green), round(255 * blue)


def _fitting(picture: Tensor, longest: int) -> list[int]:
    height, width = picture.shape[-2:]
    return [max(1, round(side * longest / max(height, width))) for side in (height, width)]
