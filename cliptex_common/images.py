"""Pixels as every reader of this package sees them."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
from PIL import Image

from cliptex_common.errors import UserError

# raised by Pillow for a damaged file
IMAGE_ERRORS = (
    OSError,
    ValueError,
    SyntaxError,
    EOFError,
    struct.error,
    Image.DecompressionBombError,
)


def to_rgb(image: Image.Image) -> Image.Image:
    """An opened image as 8-bit RGB, as stored: EXIF orientation is ignored, since labels ignore it.

    Of 16-bit grey the upper eight bits count, as in OpenCV; Pillow would clip all above 255.
    """
    if image.mode.startswith("I"):
        grey = np.asarray(image).clip(0, 65535).astype(np.uint16) >> 8
        image = Image.fromarray(grey.astype(np.uint8))
    return image.convert("RGB")


def image_size(path: str | Path) -> tuple[int, int]:
    """(width, height) from the file's header. Raises ``UserError`` if it cannot be read."""
    try:
        with Image.open(path) as image:
            return image.size
    except IMAGE_ERRORS as error:
        raise UserError(f"cannot read {path}: {error}") from error
