"""Reading maps from files of the official layouts: classes, depth, normals.

Pixels are as stored: orientation tags are ignored, as in ``cliptex_common.images``.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import numpy as np

from cliptex_common.errors import UserError
from cliptex_common.images import IMAGE_ERRORS, open_image

UNKNOWN = 255  # in stored maps of classes of 8 bits; of 16 bits 65535
DEEP = ("I", "I;16")  # Pillow's modes of 16-bit grey
GREY = ("L", "1", *DEEP)
ImageFile = str | Path | IO[bytes]


def read_stored(file: ImageFile, modes: Sequence[str], expected: str) -> np.ndarray:
    """The values that an image file stores, (H, W) or (H, W, channels), whatever they mean.

    Args:
        modes: Pillow's, that the file may have.
        expected: what it should be, for the message (``a mask has one number a pixel``).

    Raises:
        OSError, ValueError: it is no image, or of another mode (see ``IMAGE_ERRORS``).
    """
    with open_image(file) as image:
        if image.mode not in modes:
            raise ValueError(f"{expected}, this one is {image.mode}")
        return np.asarray(image)


def read_classes(file: ImageFile) -> np.ndarray:
    """Class numbers as a palette or grey PNG of 8 or 16 bits stores them, (H, W) uint8 or uint16.

    Raises:
        OSError, ValueError: it is no such file.
    """
    stored = read_stored(file, ("P", *GREY), "a mask has one number a pixel (palette or grey)")
    return stored.astype(np.uint8 if stored.dtype in (np.uint8, np.bool_) else np.uint16)


def read_scalars(file: ImageFile, low: float, high: float) -> np.ndarray:
    """Numbers as a grey PNG of 8 or 16 bits stores them, black ``low`` and white ``high``, in even
    steps: (H, W) float32.

    Raises:
        OSError, ValueError: it is no such file.
    """
    stored = read_stored(file, GREY, "a map of numbers is a grey PNG")
    white = {np.bool_: 1, np.uint8: 255}.get(stored.dtype.type, 65535)
    return (low + stored / white * (high - low)).astype(np.float32)


def read_rgb(file: ImageFile) -> np.ndarray:
    """Vectors as an 8-bit RGB PNG codes them, (H, W, 3) uint8: n = value / 127.5 - 1.

    Raises:
        OSError, ValueError: it is no such file.
    """
    stored = read_stored(file, ("RGB", "RGBA"), "a map of normals is an 8-bit RGB PNG")
    return stored[..., :3]


@contextmanager
def _report_unreadable(kind: str, path: str) -> Iterator[None]:
    try:
        yield
    except IMAGE_ERRORS as error:
        raise UserError(f"cannot read {kind} map {path}: {error}") from error


def read_labels(path: str, offset: int, ignore_index: int, classes: int) -> np.ndarray:
    """A label map, (H, W) uint16 class indices or ``ignore_index``.

    Args:
        path: single-channel or palette PNG; 8 or 16 bits.
        offset: added to stored values; a value that would fall below 0 is ignored, as is a stored
            ``ignore_index``.
        ignore_index: value of pixels that are not scored, in the file and in the result.
        classes: number of classes.

    Raises:
        UserError: the file cannot be read, or holds a label that is no class.
    """
    with _report_unreadable("label", path):
        stored = read_classes(path)
    labels = stored.astype(np.int32) + offset
    labels[(stored == ignore_index) | (labels < 0)] = ignore_index
    wrong = (labels >= classes) & (labels != ignore_index)
    if wrong.any():
        raise UserError(
            f"label map {path} holds {labels[wrong][0] - offset}, which is none of the {classes}"
            " classes"
        )
    return labels.astype(np.uint16)


def unrotated(stored: np.ndarray, bits: int) -> np.ndarray:
    """16-bit values whose bits were rotated to the left by so many."""
    return stored if not bits else (stored >> bits) | ((stored << (16 - bits)) & 0xFFFF)


def read_depth(path: str, scale: float, rotated_bits: int = 0) -> np.ndarray:
    """A depth PNG (8 or 16 bits, stored 0 = unknown) × ``scale`` → (H, W) float32 metres, 0 where
    unknown; see ``unrotated``.

    Raises:
        UserError: the file cannot be read.
    """
    with _report_unreadable("depth", path):
        stored = read_stored(path, GREY, "it must be a PNG with one channel")
    return unrotated(stored, rotated_bits).astype(np.float32) * np.float32(scale)


def read_normals(path: str) -> np.ndarray:
    """An 8-bit RGB PNG with n = value / 127.5 - 1 → (H, W, 3) float32 unit vectors; stored (0, 0,
    0) stays (0, 0, 0).

    A stored vector shorter than a half counts as unknown, too: its direction is noise.

    Raises:
        UserError: the file cannot be read.
    """
    with _report_unreadable("normal", path):
        stored = read_rgb(path)
    normals = stored.astype(np.float32)
    normals /= 127.5
    normals -= 1
    # without linalg.norm and where, which take longer than reading the file
    length = np.sqrt(np.einsum("hwc,hwc->hw", normals, normals))
    valid = ((stored[..., 0] > 0) | (stored[..., 1] > 0) | (stored[..., 2] > 0)) & (length > 0.5)
    normals *= np.where(valid, 1 / np.maximum(length, 1e-6), 0)[..., None]
    return normals
