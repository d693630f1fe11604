"""Pictures of predictions beside the ground truth, as PNG and as galleries of small pictures."""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Iterable, Mapping, Sequence
from itertools import zip_longest
from pathlib import Path, PurePath

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from cliptex_common.dense_maps.pictures import INK, PAPER
from cliptex_common.files import atomic_write
from reports import artifacts

GAP = 8
TILE = 256  # longest side of a picture, pixels
PALE = (96, 96, 96)
GALLERY_IMAGES = 48  # images of a gallery
SMALL = 176  # longest side of a gallery's picture, pixels


def write_preview(
    path: Path,
    titles: Sequence[str],
    rows: Sequence[Sequence[np.ndarray]],
    captions: Sequence[str] = (),
    legend: np.ndarray | None = None,
    side: int = TILE,
) -> Path:
    """Write a grid of pictures as a PNG, completely or not at all.

    Args:
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
    tiles = [[_fit(picture, side) for picture in row] for row in rows]
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
        sheet.save(temporary, "PNG")
    return path


def write_gallery(
    folder: Path,
    images: Iterable[tuple[str, Mapping[str, np.ndarray]]],
    legend: np.ndarray | None = None,
    flat: bool = False,
    side: int = SMALL,
) -> Path:
    """Write small pictures for a report as a ZIP of picture files, ``artifacts.GALLERY``,
    completely or not at all.

    Args:
        images: (name of the image, {"image" | "truth" | "prediction": (H, W, 3) uint8 RGB});
            consumed one by one.
        legend: (h, w, 3) uint8, stored as ``legend.png``.
        flat: ground truth and prediction have few colours and sharp edges (label maps) and are
            stored without loss.
        side: longest side of the pictures, pixels.

    Returns:
        its path; its ``index.json`` is
        ``{"images": [{"name", "image", "truth", "prediction"}, …], "legend"}`` with file names.

    Raises:
        UserError: the file cannot be written.
    """
    path = folder / PurePath(artifacts.GALLERY).name
    index: list[dict[str, str]] = []
    with atomic_write(path) as temporary, zipfile.ZipFile(temporary, "w") as pack:
        for number, (name, pictures) in enumerate(images):
            entry = {"name": name}
            for role, picture in pictures.items():
                lossless = flat and role != "image"
                entry[role] = f"{number:03d}-{role}.{'png' if lossless else 'webp'}"
                pack.writestr(entry[role], _encode(_fit(picture, side), lossless))
            index.append(entry)
        if legend is not None:
            pack.writestr("legend.png", _encode(Image.fromarray(legend), True))
        legend_file = "legend.png" if legend is not None else None
        pack.writestr("index.json", json.dumps({"images": index, "legend": legend_file}))
    return path


def _encode(image: Image.Image, lossless: bool) -> bytes:
    buffer = io.BytesIO()
    if lossless:
        if colours := image.getcolors(256):
            image = image.quantize(max(2, len(colours)), dither=Image.Dither.NONE)
        image.save(buffer, "PNG", optimize=True)
    else:
        image.save(buffer, "WEBP", quality=80, method=4)
    return buffer.getvalue()


def _fit(picture: np.ndarray, side: int) -> Image.Image:
    image = Image.fromarray(picture)
    factor = side / max(image.size)
    size = [max(1, round(length * factor)) for length in image.size]
    return image.resize(size, Image.Resampling.BOX if factor < 1 else Image.Resampling.NEAREST)
