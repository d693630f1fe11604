"""A picture of some validation images: the truth at the left, what was found at the right."""

from __future__ import annotations

import colorsys
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from faster_coco_eval import COCO
from PIL import Image, ImageDraw, ImageFont
from pycocotools import mask as mask_api

from backbones.files import replacing
from probes.pictures import GALLERY, evenly, write_gallery

IMAGES = 6
SIDE = 400  # longest side of a picture, pixels
SMALL = 256  # of a picture in the gallery: names must be readable
GAP = 8
HEADER = 26
LEAST_SCORE = 0.3
MOST = 10


def draw_panel(
    path: Path,
    root: Path,
    ann_file: str,
    images: Mapping[int, str],
    detections: Sequence[Mapping[str, Any]],
    masks: bool,
) -> Path:
    """Write the panel as a PNG: up to six images with objects, evenly spaced over ``images``, two in a row; and up to 48 of
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

    def drawn(image: int, side: int) -> tuple[Image.Image, Image.Image, Image.Image]:
        with Image.open(Path(root, images[image])) as opened:
            picture = opened.convert("RGB")
        true, found = list(truth.imgToAnns[image]), shown(of_image[image])
        with_truth = annotate(picture, true, names, colours, masks, side)
        return picture, with_truth, annotate(picture, found, names, colours, masks, side)

    chosen = [with_objects[place] for place in evenly(len(with_objects), GALLERY)]
    pictures = (
        (images[image], dict(zip(("image", "truth", "prediction"), map(np.asarray, drawn(image, SMALL)), strict=True)))
        for image in chosen
    )
    write_gallery(path.with_name("gallery.zip"), pictures, side=SMALL)
    sheet = _grid([drawn(with_objects[place], SIDE)[1:] for place in evenly(len(with_objects), IMAGES)])
    with replacing(path) as temporary:
        sheet.save(temporary, format="PNG")
    return path


def shown(found: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The detections worth drawing: the best ten with a score of 0.3 or more, else the best three; best last."""
    ranked = sorted(found, key=lambda one: one["score"])
    return [one for one in ranked if one["score"] >= LEAST_SCORE][-MOST:] or ranked[-3:]


def annotate(
    picture: Image.Image,
    objects: Sequence[Mapping[str, Any]],
    names: Mapping[int, str],
    colours: Mapping[int, tuple[int, int, int]],
    masks: bool,
    longest: int = SIDE,
) -> Image.Image:
    """``picture``, resized to a longest side of ``longest`` px, with boxes, names, scores and perhaps masks drawn in."""
    factor = longest / max(picture.size)
    size = max(1, round(picture.width * factor)), max(1, round(picture.height * factor))
    canvas = np.asarray(picture.resize(size, Image.Resampling.BICUBIC)).astype(np.float32)
    if masks:
        for one in objects:
            if one.get("segmentation"):
                mask = Image.fromarray(_mask(one["segmentation"], picture.height, picture.width) * 255)
                inside = np.asarray(mask.resize(size, Image.Resampling.BILINEAR)) > 127
                canvas[inside] = 0.5 * canvas[inside] + 0.5 * np.array(colours[one["category_id"]], np.float32)
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


def _mask(segmentation: Any, height: int, width: int) -> np.ndarray:
    """Polygons or run-length code → (height, width) uint8 of 0 and 1."""
    if isinstance(segmentation, list):
        code = mask_api.merge(mask_api.frPyObjects(segmentation, height, width))
    elif isinstance(segmentation["counts"], list):
        code = mask_api.frPyObjects(segmentation, height, width)
    else:
        code = segmentation
    return mask_api.decode(code)


def _grid(pairs: Sequence[Sequence[Image.Image]]) -> Image.Image:
    """Two pairs in a row, each picture in a square of 400 px, with a heading for each column."""
    rows = [[picture for pair in pairs[start : start + 2] for picture in pair] for start in range(0, len(pairs), 2)]
    columns = max((len(row) for row in rows), default=2)
    heights = [max(picture.height for picture in row) for row in rows]
    sheet = Image.new("RGB", (columns * (SIDE + GAP) + GAP, HEADER + sum(heights) + GAP * (len(rows) + 1)), "white")
    pen = ImageDraw.Draw(sheet)
    for column in range(columns):
        words = f"prediction (score {LEAST_SCORE} and more, or the best 3)" if column % 2 else "truth"
        pen.text((GAP + column * (SIDE + GAP), 7), words, fill="black", font=ImageFont.load_default(15))
    top = HEADER + GAP
    for row, height in zip(rows, heights, strict=True):
        for column, picture in enumerate(row):
            sheet.paste(picture, (GAP + column * (SIDE + GAP), top))
        top += height + GAP
    return sheet
