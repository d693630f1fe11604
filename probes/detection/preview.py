"""A picture of some validation images: the ground truth at the left, what was found at the
right."""

from __future__ import annotations

import colorsys
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from faster_coco_eval import COCO
from PIL import Image, ImageDraw, ImageFont

from common.images import to_rgb
from probes.pictures import GALLERY, evenly, write_gallery, write_preview

IMAGES = 6
SIDE = 400  # longest side of a picture, pixels
SMALL = 256  # of a picture in the gallery: names must be readable
SCORE_THRESHOLD = 0.3
MOST = 10


def draw_preview(
    path: Path,
    root: Path,
    ann_file: str,
    images: Mapping[int, str],
    detections: Sequence[Mapping[str, Any]],
    masks: bool,
) -> Path:
    """Write a PNG: up to six images with objects, evenly spaced over ``images``, two in a row; and
    up to 48 of them, smaller, into ``gallery.zip`` beside it (``probes.pictures.write_gallery``).

    Args:
        ann_file: COCO annotation file.
        images: image id → path relative to ``root``, the dataset's.
        detections: COCO result list; of each image what ``shown`` chooses is drawn.
    """
    truth = COCO(ann_file)
    names = {identity: category["name"] for identity, category in truth.cats.items()}
    colours = {
        identity: colour_of(place, len(names)) for place, identity in enumerate(sorted(names))
    }
    with_objects = [image for image in images if truth.imgToAnns[image]] or list(images)
    of_image: dict[int, list[Mapping[str, Any]]] = defaultdict(list)
    for one in detections:
        of_image[one["image_id"]].append(one)

    def drawn(image: int, side: int) -> dict[str, np.ndarray]:
        with Image.open(Path(root, images[image])) as opened:
            picture = to_rgb(opened)
        objects = {
            "image": [],
            "truth": truth.imgToAnns[image],
            "prediction": shown(of_image[image]),
        }
        pictures = {}
        for role, found in objects.items():
            inside = [
                truth.annToMask(one) if masks and one.get("segmentation") else None for one in found
            ]
            pictures[role] = np.asarray(annotate(picture, found, inside, names, colours, side))
        return pictures

    chosen = [with_objects[place] for place in evenly(len(with_objects), GALLERY)]
    write_gallery(
        path.with_name("gallery.zip"),
        ((images[one], drawn(one, SMALL)) for one in chosen),
        side=SMALL,
    )
    pairs = [drawn(with_objects[place], SIDE) for place in evenly(len(with_objects), IMAGES)]
    flat = [pair[role] for pair in pairs for role in ("truth", "prediction")]
    titles = (
        "ground truth",
        f"prediction (score {SCORE_THRESHOLD} and more, or the best 3)",
    ) * min(2, len(pairs))
    rows = [flat[start : start + 4] for start in range(0, len(flat), 4)]
    return write_preview(path, titles, rows, side=SIDE)


def shown(found: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The detections worth drawing: the best ten with a score of 0.3 or more, else the best three;
    best last."""
    ranked = sorted(found, key=lambda one: one["score"])
    return [one for one in ranked if one["score"] >= SCORE_THRESHOLD][-MOST:] or ranked[-3:]


def annotate(
    picture: Image.Image,
    objects: Sequence[Mapping[str, Any]],
    masks: Sequence[np.ndarray | None],
    names: Mapping[int, str],
    colours: Mapping[int, tuple[int, int, int]],
    longest: int = SIDE,
) -> Image.Image:
    """``picture``, resized to a longest side of ``longest`` px, with boxes, names and scores drawn
    in, and the ``masks``: (H, W) uint8 of 0 and 1, or None, for each object.

    Not by torchvision, whose names cover small objects and end at the edge of the picture, which
    paints overlapping masks black, and takes ten times as long.
    """
    factor = longest / max(picture.size)
    size = max(1, round(picture.width * factor)), max(1, round(picture.height * factor))
    canvas = np.asarray(picture.resize(size, Image.Resampling.BICUBIC)).astype(np.float32)
    for one, mask in zip(objects, masks, strict=True):
        if mask is not None:
            inside = (
                np.asarray(Image.fromarray(mask * 255).resize(size, Image.Resampling.BILINEAR))
                > 127
            )
            canvas[inside] = 0.5 * canvas[inside] + 0.5 * np.array(
                colours[one["category_id"]], np.float32
            )
    drawn = Image.fromarray(canvas.round().astype(np.uint8))
    pen = ImageDraw.Draw(drawn)
    font = ImageFont.load_default(13 if longest >= SIDE else 10)
    for one in objects:
        left, top, width, height = (value * factor for value in one["bbox"])
        colour = colours[one["category_id"]]
        pen.rectangle((left, top, left + width, top + height), outline=colour, width=2)
        words = names[one["category_id"]] + (" (crowd)" if one.get("iscrowd") else "")
        words += f" {one['score']:.2f}" if "score" in one else ""
        box = pen.textbbox((0, 0), words, font=font)
        x = min(max(left, 0), max(drawn.width - box[2] - 4, 0))
        y = min(max(top - box[3] - 3, 0), drawn.height - box[3] - 3)
        pen.rectangle((x, y, x + box[2] + 4, y + box[3] + 3), fill=colour)
        pen.text((x + 2, y + 1), words, fill="black" if sum(colour) > 380 else "white", font=font)
    return drawn


def colour_of(place: int, count: int) -> tuple[int, int, int]:
    """A colour (R, G, B) for the class at ``place`` of ``count``: neighbours get hues far apart."""
    hue = place * 0.618033988749895 % 1  # the golden ratio spreads any number of hues evenly
    red, green, blue = colorsys.hsv_to_rgb(hue, 0.65 if place % 2 else 0.95, 0.95)
    return round(255 * red), round(255 * green), round(255 * blue)
