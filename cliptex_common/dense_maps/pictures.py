"""Maps as pictures, the legends of these, and grids of pictures."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from itertools import zip_longest
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from cliptex_common.files import atomic_write

INK, PALE, PAPER = (32, 32, 32), (96, 96, 96), (255, 255, 255)
GAP = 8  # pixels between the pictures of a grid
TILE = 256  # longest side of a picture of a grid, pixels
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
    all_colours = np.vstack([colours, np.array(IGNORED, np.uint8)])
    return all_colours.take(np.where(is_class, labels, len(colours)), axis=0)


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


def write_grid(
    path: Path,
    titles: Sequence[str],
    rows: Sequence[Sequence[np.ndarray]],
    captions: Sequence[str] = (),
    legend: np.ndarray | None = None,
    side: int = TILE,
) -> Path:
    """Write a grid of pictures, completely or not at all.

    Args:
        path: its suffix says the format.
        titles: one for each column.
        rows: pictures (H, W, 3) uint8 RGB, resized so that their longest side is ``side``; the last
            row may be shorter.
        captions: one for each row, above it; may be left out.
        legend: (h, w, 3) uint8, below the grid.

    Returns:
        ``path``.

    Raises:
        UserError: the file cannot be written.
    """
    tiles = [[fit_picture(picture, side) for picture in row] for row in rows]
    widths = [max(tile.width for tile in column if tile) for column in zip_longest(*tiles)]
    heights = [max(tile.height for tile in row) for row in tiles]
    lefts = [GAP * (column + 1) + sum(widths[:column]) for column in range(len(widths))]
    caption_height = 20 if captions else 0
    width = lefts[-1] + widths[-1] + GAP
    height = 28 + sum(heights) + (GAP + caption_height) * len(heights) + GAP
    if legend is not None:
        width, height = max(width, legend.shape[1] + 2 * GAP), height + legend.shape[0] + GAP
    sheet = Image.new("RGB", (width, height), PAPER)
    pen = ImageDraw.Draw(sheet)
    for x, column_width, title in zip(lefts, widths, titles, strict=True):
        pen.text((x + column_width / 2, 16), title, INK, ImageFont.load_default(16), anchor="mm")
    y = 28
    all_captions = captions or [""] * len(tiles)
    for row, row_height, caption in zip(tiles, heights, all_captions, strict=True):
        pen.text((GAP, y + 10), caption, PALE, ImageFont.load_default(13), anchor="lm")
        for x, tile in zip(lefts, row, strict=False):
            sheet.paste(tile, (x, y + caption_height))
        y += caption_height + row_height + GAP
    if legend is not None:
        sheet.paste(Image.fromarray(legend), (GAP, y))
    with atomic_write(path) as temporary:
        sheet.save(temporary, Image.registered_extensions()[path.suffix.lower()])
    return path


def fit_picture(picture: np.ndarray, side: int) -> Image.Image:
    """A picture (H, W, 3) uint8 RGB, resized so that its longest side is ``side`` pixels."""
    image = Image.fromarray(picture)
    factor = side / max(image.size)
    size = [max(1, round(length * factor)) for length in image.size]
    return image.resize(size, Image.Resampling.BOX if factor < 1 else Image.Resampling.NEAREST)
