"""Is an instance's mask in a COCO file what the format says? Looked at before work: pycocotools
reads past the end of a run-length code that is too short, and takes memory for each pixel of an
outline, however far out of the image it goes."""

from __future__ import annotations

import math
from typing import Any


def mask_error(mask: Any, height: int, width: int) -> str:
    """What is wrong with a ``segmentation`` in an image of this size; '' where nothing is.

    It is a list of polygons ``[x, y, x, y, x, y, …]``, or a run-length code
    ``{"size": [height, width], "counts": …}``, whose counts are numbers or packed as pycocotools
    does it.
    """
    if isinstance(mask, list):
        return (
            ""
            if mask and all(_is_outline(each, max(height, width)) for each in mask)
            else ("a polygon that is no list of three or more points about its image")
        )
    if not isinstance(mask, dict):
        return "no mask (polygons or a run-length code)"
    if mask.get("size") != [height, width]:
        return f"a mask of size {mask.get('size')} in an image of {width}x{height}"
    counts = (
        _unpacked(mask["counts"]) if isinstance(mask.get("counts"), str) else mask.get("counts")
    )
    if (
        isinstance(counts, list)
        and all(type(each) is int and each >= 0 for each in counts)
        and sum(counts) == height * width
    ):
        return ""
    return "a run-length code that does not fill its image"


def _is_outline(points: Any, side: int) -> bool:
    if not isinstance(points, list) or len(points) < 6 or len(points) % 2:
        return False
    return all(
        type(each) in (int, float) and math.isfinite(each) and -side <= each <= 2 * side
        for each in points
    )


def _unpacked(text: str) -> list[int] | None:
    """The counts in a packed run-length code (``rleFrString`` of cocoapi's ``maskApi.c``): five
    bits a letter, the lowest first, a sixth that says whether more follow; from the fourth count on
    differences to the last but one."""
    counts: list[int] = []
    value = shift = 0
    for letter in text:
        bits = ord(letter) - 48
        if not 0 <= bits < 64 or shift > 60:
            return None
        value |= (bits & 31) << shift
        shift += 5
        if not bits & 32:
            value -= (bits & 16) << (shift - 4)  # its sign
            counts.append(value + (counts[-2] if len(counts) > 2 else 0))
            value = shift = 0
    return None if shift else counts
