"""COCO's instance files, whose masks are checked before pycocotools reads them: it reads past the
end of a run-length code that is too short."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from cliptex_common.errors import UserError, report_malformed
from cliptex_common.files import read_json

Instances = dict[int, dict[str, Any]]


def read_instances(path: Path) -> tuple[dict[int, str], Instances]:
    """Categories (id → name) and images (id → the file's entry, and its ``annotations``) of a COCO
    file.

    Raises:
        UserError: it is malformed or lists no images, two images have one id, or an annotation is
            of no image.
    """
    with report_malformed(f"{path} is not a COCO annotation file", "get the file again"):
        content = read_json(path)
        categories = {entry["id"]: str(entry["name"]) for entry in content["categories"]}
        images = {entry["id"]: {**entry, "annotations": []} for entry in content["images"]}
        for annotation in content["annotations"]:
            if annotation["image_id"] not in images:
                raise UserError(
                    f"{path} annotation {annotation['id']} belongs to image"
                    f" {annotation['image_id']}, which is not in the file"
                )
            images[annotation["image_id"]]["annotations"].append(annotation)
    if len(images) < len(content["images"]):
        raise UserError(f"{path} has two images with the same id; get the file again")
    if not images:
        raise UserError(f"{path} lists no images")
    return categories, images


def mask_error(mask: Any, height: int, width: int) -> str:
    """What is wrong with a ``segmentation`` in an image of this size; empty if it is valid.

    A mask is a list of polygons ``[x, y, x, y, x, y, …]``, or a run-length code
    ``{"size": [height, width], "counts": …}``, whose counts are numbers or packed as text.
    """
    if isinstance(mask, list):
        if mask and all(_is_outline(polygon, max(height, width)) for polygon in mask):
            return ""
        return "a polygon that is not a list of three or more points near its image"
    if not isinstance(mask, dict):
        return "no mask (polygons or a run-length code)"
    if mask.get("size") != [height, width]:
        return f"a mask of size {mask.get('size')} in an image of {width}x{height}"
    counts = mask.get("counts")
    if isinstance(counts, str):
        counts = _unpack(counts)
    if not isinstance(counts, list) or not all(type(count) is int for count in counts):
        return "a run-length code that cannot be read"
    if min(counts, default=0) < 0 or sum(counts) != height * width:
        return "a run-length code that does not fill its image"
    return ""


def _is_outline(points: Any, side: int) -> bool:
    if not isinstance(points, list) or len(points) < 6 or len(points) % 2:
        return False
    return all(
        type(value) in (int, float) and math.isfinite(value) and -side <= value <= 2 * side
        for value in points
    )


def _unpack(text: str) -> list[int] | None:
    """The counts in a packed run-length code; None if it is damaged.

    Format (``rleFrString`` of cocoapi's ``maskApi.c``): five bits a letter, lowest first, and a
    sixth if more follow; from the fourth count on differences to the last but one.
    """
    counts: list[int] = []
    value = shift = 0
    for letter in text:
        bits = ord(letter) - 48
        if not 0 <= bits < 64 or shift > 60:
            return None
        value |= (bits & 31) << shift
        shift += 5
        if not bits & 32:
            value -= (bits & 16) << (shift - 4)  # sign
            counts.append(value + (counts[-2] if len(counts) > 2 else 0))
            value = shift = 0
    return None if shift else counts
