"""Pictures of what a probe predicts, beside the ground truth, as one PNG. Needs Pillow and OpenCV
only."""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import cv2
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from common.files import atomic_write

GAP = 8
TILE = 256  # longest side of a picture, pixels
INK, PALE, PAPER = (32, 32, 32), (96, 96, 96), (255, 255, 255)
IGNORED = (224, 224, 192)  # PASCAL VOC's cream: no class has it
UNKNOWN = (128, 128, 128)  # grey is not in viridis
GALLERY = 48  # images of a gallery
SMALL = 176  # longest side of a gallery's picture, pixels


def palette(classes: int) -> np.ndarray:
    """Colours of label maps, (classes, 3) uint8: PASCAL VOC's own series (the bits of the index,
    spread over R, G and B)."""
    indices = np.arange(classes)
    colours = np.zeros((classes, 3), np.uint8)
    for bit in range(8):
        for channel in range(3):
            colours[:, channel] |= (((indices >> (3 * bit + channel)) & 1) << (7 - bit)).astype(
                np.uint8
            )
    return colours


def label_picture(labels: np.ndarray, colours: np.ndarray) -> np.ndarray:
    """(H, W) class indices → (H, W, 3) uint8; whatever is no class is cream."""
    known = np.logical_and(labels >= 0, labels < len(colours))
    return np.where(
        np.expand_dims(known, -1), colours[np.where(known, labels, 0)], np.array(IGNORED, np.uint8)
    )


def depth_picture(depth: np.ndarray, low: float, high: float) -> np.ndarray:
    """(H, W) metres → (H, W, 3) uint8 in viridis from ``low`` (dark) to ``high`` (bright); 0
    (unknown) is grey."""
    grey = np.clip(255 * (depth - low) / max(high - low, 1e-6), 0, 255).astype(np.uint8)
    colour = cv2.applyColorMap(grey, cv2.COLORMAP_VIRIDIS)[..., ::-1]
    return np.where(np.expand_dims(depth > 0, -1), colour, np.array(UNKNOWN, np.uint8))


def normal_picture(normals: np.ndarray) -> np.ndarray:
    """(3, H, W) unit vectors → (H, W, 3) uint8 with x, y, z from -1 … 1 as R, G, B from 0 … 255;
    (0, 0, 0) is black."""
    rgb = np.clip((normals.transpose(1, 2, 0) + 1) * 127.5, 0, 255).astype(np.uint8)
    return np.where(np.expand_dims(normals.any(axis=0), -1), rgb, np.uint8(0))


def scale_bar(low: float, high: float, width: int = 360) -> np.ndarray:
    """A legend of ``depth_picture``: the colours from ``low`` to ``high`` metres, labelled at both
    ends; (28, width, 3) uint8."""
    left, right = f"{low:.1f} m", f"{high:.1f} m"
    picture = Image.new("RGB", (width, 28), PAPER)
    pen, font = ImageDraw.Draw(picture), _font(14)
    start, end = (
        int(pen.textlength(left, font=font)) + 8,
        width - int(pen.textlength(right, font=font)) - 8,
    )
    ramp = np.linspace(max(low, 1e-3), high, end - start)[None].repeat(16, axis=0)
    picture.paste(Image.fromarray(depth_picture(ramp, low, high)), (start, 6))
    pen.text((0, 14), left, INK, font, anchor="lm")
    pen.text((width, 14), right, INK, font, anchor="rm")
    return np.asarray(picture)


def class_legend(names: Sequence[str], colours: np.ndarray, width: int) -> np.ndarray:
    """A legend of ``label_picture``: a swatch and a name for each class, wrapped to ``width``;
    (height, width, 3) uint8."""
    font = _font(14)
    measure = ImageDraw.Draw(Image.new("RGB", (1, 1)))
    places, x, y = [], 0, 0
    for name in names:
        length = 24 + int(measure.textlength(name, font=font)) + 12
        if x and x + length > width:
            x, y = 0, y + 22
        places.append((x, y))
        x += length
    picture = Image.new("RGB", (width, y + 22), PAPER)
    pen = ImageDraw.Draw(picture)
    for (x, y), name, colour in zip(places, names, colours, strict=True):
        pen.rectangle((x, y + 3, x + 16, y + 17), tuple(int(value) for value in colour), INK)
        pen.text((x + 22, y + 10), name, INK, font, anchor="lm")
    return np.asarray(picture)


def write_preview(
    path: Path,
    titles: Sequence[str],
    rows: Sequence[Sequence[np.ndarray]],
    captions: Sequence[str] = (),
    legend: np.ndarray | None = None,
    side: int = TILE,
) -> Path:
    """Write a grid of pictures as a PNG, whole or not at all.

    Args:
        path: where to.
        titles: one for each column.
        rows: pictures (H, W, 3) uint8 RGB, resized so that their longest side is ``side``; the last
            row may be shorter.
        captions: one for each row, above it; may be left out.
        legend: (h, w, 3) uint8, below the grid.

    Returns:
        ``path``.

    Raises:
        UserError: it cannot be written.
    """
    tiles = [[_fit(picture, side) for picture in row] for row in rows]
    widths = [
        max(row[column].width for row in tiles if column < len(row))
        for column in range(len(titles))
    ]
    heights = [max(tile.height for tile in row) for row in tiles]
    caption = 20 if captions else 0
    width = max(
        sum(widths) + GAP * (len(widths) + 1), 0 if legend is None else legend.shape[1] + 2 * GAP
    )
    height = (
        28
        + sum(heights)
        + (GAP + caption) * len(heights)
        + GAP
        + (0 if legend is None else legend.shape[0] + GAP)
    )
    sheet = Image.new("RGB", (width, height), PAPER)
    pen = ImageDraw.Draw(sheet)
    left = [GAP + sum(widths[:column]) + GAP * column for column in range(len(widths))]
    for x, column_width, title in zip(left, widths, titles, strict=True):
        pen.text((x + column_width / 2, 16), title, INK, _font(16), anchor="mm")
    y = 28
    for number, (row, row_height) in enumerate(zip(tiles, heights, strict=True)):
        if captions:
            pen.text((GAP, y + caption / 2), captions[number], PALE, _font(13), anchor="lm")
        for x, tile in zip(left, row, strict=False):
            sheet.paste(tile, (x, y + caption))
        y += caption + row_height + GAP
    if legend is not None:
        sheet.paste(Image.fromarray(legend), (GAP, y))
    with atomic_write(path) as temporary:
        sheet.save(temporary, "PNG", optimize=True)
    return path


def evenly(count: int, most: int) -> list[int]:
    """Up to ``most`` places of ``count``, evenly spaced, first and last among them."""
    return (
        np.unique(np.linspace(0, count - 1, min(most, count)).round().astype(int)).tolist()
        if count
        else []
    )


def write_gallery(
    path: Path,
    images: Iterable[tuple[str, Mapping[str, np.ndarray]]],
    legend: np.ndarray | None = None,
    flat: bool = False,
    side: int = SMALL,
) -> Path:
    """Write small pictures of images as a ZIP of picture files, whole or not at all: what a report
    puts side by side.

    Args:
        path: where to.
        images: (name of the image, {"image" | "truth" | "prediction": (H, W, 3) uint8 RGB});
            consumed one by one.
        legend: (h, w, 3) uint8, stored as ``legend.png``.
        flat: ground truth and prediction have few colours and sharp edges (label maps): stored
            without loss.
        side: longest side of the pictures, pixels.

    Returns:
        ``path``; its ``index.json`` is
        ``{"images": [{"name", "image", "truth", "prediction"}, …], "legend"}`` with file names.

    Raises:
        UserError: it cannot be written.
    """
    index: list[dict[str, str]] = []
    with (
        atomic_write(path) as temporary,
        zipfile.ZipFile(temporary, "w", zipfile.ZIP_STORED) as pack,
    ):
        for number, (name, pictures) in enumerate(images):
            entry = {"name": name}
            for role, picture in pictures.items():
                lossless = flat and role != "image"
                entry[role] = f"{number:03d}-{role}.{'png' if lossless else 'webp'}"
                pack.writestr(entry[role], _encoded(_fit(picture, side), lossless))
            index.append(entry)
        if legend is not None:
            pack.writestr("legend.png", _encoded(Image.fromarray(legend), True))
        facts = {"images": index, "legend": "legend.png" if legend is not None else None}
        pack.writestr("index.json", json.dumps(facts))
    return path


def _encoded(image: Image.Image, lossless: bool) -> bytes:
    buffer = io.BytesIO()
    if lossless:
        colours = image.getcolors(256)
        (image.quantize(max(2, len(colours)), dither=Image.Dither.NONE) if colours else image).save(
            buffer, "PNG", optimize=True
        )
    else:
        image.save(buffer, "WEBP", quality=80, method=4)
    return buffer.getvalue()


def _fit(picture: np.ndarray, side: int = TILE) -> Image.Image:
    image = Image.fromarray(picture)
    factor = side / max(image.size)
    size = (max(1, round(image.width * factor)), max(1, round(image.height * factor)))
    return image.resize(size, Image.Resampling.BOX if factor < 1 else Image.Resampling.NEAREST)


def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)
