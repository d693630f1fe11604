"""Parts of images that are read or scored: the same pixels of each image, or, where images have
several sizes, by a name."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from pydantic import NonNegativeInt, PositiveInt

from cliptex_common.errors import UserError

# (top, bottom, left, right) in pixels, bottom and right exclusive; none for all of it; or a name:
#   kb             KITTI's benchmark crop is read and scored: 1216 × 352, at the bottom, central
#   kb-garg        it is read; the part of it is scored that Garg et al. (ECCV 2016) score
#   kb-garg-frame  it is read; that part of the complete image is scored
Area = (
    tuple[()]
    | tuple[NonNegativeInt, PositiveInt, NonNegativeInt, PositiveInt]
    | tuple[Literal["kb", "kb-garg", "kb-garg-frame"]]
)
Bounds = tuple[int, int, int, int]
KB_HEIGHT, KB_WIDTH = 352, 1216
GARG = (0.40810811, 0.99189189, 0.03594771, 0.96405229)  # top, bottom, left, right


def bounds_read(area: Sequence[Any], height: int, width: int) -> Bounds:
    """The pixels of an image that are read.

    Raises:
        UserError: the image is too small.
    """
    if len(area) != 1:
        top, bottom, left, right = area or (0, height, 0, width)
        return top, bottom, left, right
    if height < KB_HEIGHT or width < KB_WIDTH:
        raise UserError(
            f"the area {area[0]} does not fit an image of {width}×{height}; KITTI's are"
            f" {KB_WIDTH}×{KB_HEIGHT} or more"
        )
    top, left = height - KB_HEIGHT, (width - KB_WIDTH) // 2
    return top, top + KB_HEIGHT, left, left + KB_WIDTH


def bounds_scored(area: Sequence[Any], height: int, width: int) -> Bounds:
    """The pixels of a label map that are scored. Raises as ``bounds_read``."""
    top, bottom, left, right = read = bounds_read(area, height, width)
    if area == ("kb-garg-frame",):
        top, bottom, left, right = 0, height, 0, width
    elif area != ("kb-garg",):
        return read
    sides = (bottom - top, bottom - top, right - left, right - left)
    starts = (top, top, left, left)
    y1, y2, x1, x2 = (
        start + int(share * side) for start, share, side in zip(starts, GARG, sides, strict=True)
    )
    return y1, y2, x1, x2
