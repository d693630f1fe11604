"""Maps as pictures, and the legends of these."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import numpy as np
from PIL import Image, ImageDraw, ImageFont

INK, PAPER = (32, 32, 32), (255, 255, 255)
IGNORED = (224, 224, 192)  # PASCAL VOC's cream: no class has it
UNKNOWN = (128, 128, 128)  # grey is not in viridis


def spread_indices(count: int, limit: int) -> list[int]:
    """Up to ``limit`` indices of ``count`` items, evenly spaced, first and last included."""
    return np.linspace(0, count - 1, min(limit, count)).round().astype(int).tolist()


@cache
def palette(classes: int) -> np.ndarray:
    """Colours of label maps, (classes, 3) uint8.

    PASCAL VOC's own series: the bits of the index, spread over R, G and B.
    """
    indices = np.arange(classes)
    colours = np.zeros((classes, 3), np.uint8)
    for bit in range(8):
        for channel in range(3):
            value = ((indices >> (3 * bit + channel)) & 1) << (7 - bit)
            colours[:, channel] |= value.astype(np.uint8)
    return colours


def label_picture(labels: np.ndarray, colours: np.ndarray) -> np.ndarray:
    """(H, W) class indices → (H, W, 3) uint8; cream where there is no class."""
    is_class = np.logical_and(labels >= 0, labels < len(colours))
    picture = colours[np.where(is_class, labels, 0)]
    return np.where(is_class[..., None], picture, np.array(IGNORED, np.uint8))


def scalar_picture(values: np.ndarray, low: float, high: float, valid: np.ndarray) -> np.ndarray:
    """(H, W) numbers → (H, W, 3) uint8 in viridis, dark at ``low`` and bright at ``high``; grey
    where not ``valid``."""
    shade = np.clip(255 * (values - low) / max(high - low, 1e-6), 0, 255).astype(np.uint8)
    return np.where(valid[..., None], _viridis()[shade], np.array(UNKNOWN, np.uint8))


def depth_picture(depth: np.ndarray, low: float, high: float) -> np.ndarray:
    """``scalar_picture`` of (H, W) metres; 0 is unknown."""
    return scalar_picture(depth, low, high, depth > 0)


@cache
def _viridis() -> np.ndarray:
    """(256, 3) uint8 RGB."""
    import cv2  # a tenth of a second, which lists need not wait for

    return cv2.applyColorMap(np.arange(256, dtype=np.uint8), cv2.COLORMAP_VIRIDIS)[:, 0, ::-1]


def normal_picture(normals: np.ndarray) -> np.ndarray:
    """(3, H, W) unit vectors → (H, W, 3) uint8: x, y, z from -1 to 1 as R, G, B from 0 to 255.

    (0, 0, 0), unknown, is black.
    """
    rgb = np.clip((normals.transpose(1, 2, 0) + 1) * 127.5, 0, 255).astype(np.uint8)
    return np.where(np.expand_dims(normals.any(axis=0), -1), rgb, np.uint8(0))


def scale_bar(low: float, high: float, width: int = 360) -> np.ndarray:
    """Legend of ``depth_picture``: the colours from ``low`` to ``high`` metres, labelled at both
    ends; (28, width, 3) uint8."""
    low_text, high_text = f"{low:.1f} m", f"{high:.1f} m"
    picture = Image.new("RGB", (width, 28), PAPER)
    pen, font = ImageDraw.Draw(picture), ImageFont.load_default(14)
    start = int(pen.textlength(low_text, font=font)) + 8
    end = width - int(pen.textlength(high_text, font=font)) - 8
    ramp = np.linspace(max(low, 1e-3), high, end - start)[None].repeat(16, axis=0)
    picture.paste(Image.fromarray(depth_picture(ramp, low, high)), (start, 6))
    pen.text((0, 14), low_text, INK, font, anchor="lm")
    pen.text((width, 14), high_text, INK, font, anchor="rm")
    return np.asarray(picture)


def class_legend(names: Sequence[str], colours: np.ndarray, width: int) -> np.ndarray:
    """Legend of ``label_picture``: a swatch and a name for each class, wrapped to ``width``;
    (height, width, 3) uint8."""
    font = ImageFont.load_default(14)
    positions, x, y = [], 0, 0
    for name in names:
        length = 24 + int(font.getlength(name)) + 12
        if x and x + length > width:
            x, y = 0, y + 22
        positions.append((x, y))
        x += length
    picture = Image.new("RGB", (width, y + 22), PAPER)
    pen = ImageDraw.Draw(picture)
    for (x, y), name, colour in zip(positions, names, colours, strict=True):
        pen.rectangle((x, y + 3, x + 16, y + 17), tuple(colour.tolist()), INK)
        pen.text((x + 22, y + 10), name, INK, font, anchor="lm")
    return np.asarray(picture)
