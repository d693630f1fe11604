"""Pictures of COCO's objects, true and predicted: boxes with names, and masks."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from faster_coco_eval import COCO
from PIL import Image, ImageDraw, ImageFont

from cliptex_common.images import open_image, palette, spread_indices, to_rgb, write_grid
from probes.pictures import GALLERY_IMAGES, write_gallery

PREVIEW_IMAGES = 6
SIDE = 400  # longest side of a picture, pixels
SMALL = 256  # of a picture in the gallery: names must be readable
SCORE_THRESHOLD = 0.3
# text, colour, COCO's box in pixels, mask (H, W; uint8 of 0 and 1)
Instance = tuple[str, tuple[int, ...], Sequence[float], np.ndarray | None]


def draw_preview(
    path: Path,
    root: Path,
    ann_file: str,
    images: Mapping[int, str],
    detections: Sequence[Mapping[str, Any]],
    masks: bool,
) -> Path:
    """Write a PNG of up to six images with objects, evenly spaced over ``images``, two in a row;
    and up to 48 of them, smaller, into a gallery beside it
    (``probes.pictures.write_gallery``).

    Args:
        ann_file: COCO annotation file.
        images: image id → path relative to ``root``, the dataset's.
        detections: COCO result list, of which ``best`` are drawn.
    """
    ground_truth = COCO(ann_file)
    names = {number: category["name"] for number, category in ground_truth.cats.items()}
    colours = dict(zip(sorted(names), palette(len(names) + 1)[1:].tolist(), strict=True))
    detections_of: dict[int, list[Mapping[str, Any]]] = defaultdict(list)
    for detection in detections:
        detections_of[detection["image_id"]].append(detection)

    def described(instance: Mapping[str, Any]) -> Instance:
        category = instance["category_id"]
        text = names[category] + (" (crowd)" if instance.get("iscrowd") else "")
        text += f" {instance['score']:.2f}" if "score" in instance else ""
        has_mask = masks and instance.get("segmentation")
        mask = ground_truth.annToMask(instance) if has_mask else None
        return text, tuple(colours[category]), instance["bbox"], mask

    def draw(image: int, side: int) -> dict[str, np.ndarray]:
        with open_image(Path(root, images[image])) as opened:
            photo = to_rgb(opened)
        objects = {
            "image": [],
            "truth": ground_truth.imgToAnns[image],
            "prediction": best(detections_of[image]),
        }
        return {
            role: annotate(photo, list(map(described, instances)), side)
            for role, instances in objects.items()
        }

    with_objects = [image for image in images if ground_truth.imgToAnns[image]] or list(images)
    gallery = [with_objects[index] for index in spread_indices(len(with_objects), GALLERY_IMAGES)]
    write_gallery(
        path.parent,
        ((images[image], draw(image, SMALL)) for image in gallery),
        side=SMALL,
    )
    pairs = [
        draw(with_objects[index], SIDE)
        for index in spread_indices(len(with_objects), PREVIEW_IMAGES)
    ]
    tiles = [pair[role] for pair in pairs for role in ("truth", "prediction")]
    titles = ("ground truth", f"prediction (score {SCORE_THRESHOLD} and more, or the best 3)")
    rows = [tiles[start : start + 4] for start in range(0, len(tiles), 4)]
    return write_grid(path, titles * min(2, len(pairs)), rows, side=SIDE)


def best(detections: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The best ten with a score of 0.3 or more, else the best three; best last."""
    ranked = sorted(detections, key=lambda detection: detection["score"])
    sure = [detection for detection in ranked if detection["score"] >= SCORE_THRESHOLD]
    return sure[-10:] or ranked[-3:]


def annotate(photo: Image.Image, instances: Sequence[Instance], longest: int = SIDE) -> np.ndarray:
    """Draw instances with boxes, texts and masks onto ``photo``, resized to a longest side of
    ``longest`` px.

    Not by torchvision, whose names cover small objects and end at the edge of the picture, and
    which paints overlapping masks black.
    """
    factor = longest / max(photo.size)
    size = max(1, round(photo.width * factor)), max(1, round(photo.height * factor))
    canvas = photo.resize(size, Image.Resampling.BICUBIC)
    for _, colour, _, mask in instances:
        if mask is not None:
            half = Image.fromarray(mask * 127).resize(size, Image.Resampling.NEAREST)
            canvas.paste(colour, mask=half)
    pen = ImageDraw.Draw(canvas)
    font = ImageFont.load_default(13 if longest >= SIDE else 10)
    for text, colour, box, _ in instances:
        x, y, width, height = (value * factor for value in box)
        pen.rectangle((x, y, x + width, y + height), outline=colour, width=2)
        *_, text_width, text_height = pen.textbbox((0, 0), text, font=font)
        x = min(max(x, 0), max(canvas.width - text_width - 4, 0))
        y = min(max(y - text_height - 3, 0), canvas.height - text_height - 3)
        pen.rectangle((x, y, x + text_width + 4, y + text_height + 3), fill=colour)
        ink = "black" if sum(colour) > 380 else "white"
        pen.text((x + 2, y + 1), text, fill=ink, font=font)
    return np.asarray(canvas)
