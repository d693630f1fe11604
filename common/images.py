"""Pixels as every reader of this suite sees them."""

from __future__ import annotations

import struct

import numpy as np
from PIL import Image

# What Pillow raises for a broken file; a bomb, whose header promises more pixels than memory holds,
# is none of the others.
IMAGE_ERRORS = (
    OSError,
    ValueError,
    SyntaxError,
    EOFError,
    struct.error,
    Image.DecompressionBombError,
)


def to_rgb(image: Image.Image) -> Image.Image:
    """An opened image as 8-bit RGB, its pixels as they are stored (a camera's note on how it was
    held is not heeded, as labels do not heed it). Of 16 bits of grey the upper eight count, as
    OpenCV has it; Pillow would show all above 255 as white."""
    if image.mode.startswith("I"):
        image = Image.fromarray(
            (np.asarray(image).clip(0, 65535).astype(np.uint16) >> 8).astype(np.uint8)
        )
    return image.convert("RGB")
