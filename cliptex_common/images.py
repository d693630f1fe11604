"""Pixels as every reader of this package sees them."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import IO

import numpy as np
from PIL import Image, UnidentifiedImageError

from cliptex_common.errors import UserError
from cliptex_common.files import check_regular

FORMATS = ("JPEG", "PNG", "WEBP", "TIFF", "BMP", "GIF", "PPM")

# raised by Pillow for a damaged file
IMAGE_ERRORS = (
    OSError,
    ValueError,
    SyntaxError,
    EOFError,
    struct.error,
    Image.DecompressionBombError,
)


def open_image(file: str | Path | IO[bytes]) -> Image.Image:
    """An image in one of ``FORMATS``, whatever its name; pixels are decoded when they are read.

    For other formats Pillow may start programs: Ghostscript for PostScript.

    Raises:
        OSError: it is none, or no regular file (see ``IMAGE_ERRORS`` for damaged ones).
    """
    if isinstance(file, str | Path):
        check_regular(file)
    try:
        return Image.open(file, formats=FORMATS)
    except UnidentifiedImageError as error:
        formats = ", ".join(FORMATS)
        raise UnidentifiedImageError(f"cannot identify it as one of {formats}") from error


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
        with open_image(path) as image:
            return image.size
    except IMAGE_ERRORS as error:
        raise UserError(f"cannot read {path}: {error}") from error
