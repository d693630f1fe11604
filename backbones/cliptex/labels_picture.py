"""A picture of labels beside their images: what a look at a label store shows."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from backbones.cliptex.labels import LabelStore
from backbones.cliptex.pairs import BadPair, PairSource, decode_image
from backbones.errors import UserError
from backbones.files import replacing

TILE = 160
GAP = 4
LINE = 14


def draw_labels(root: Path, source: PairSource, out_png: Path, n: int = 8) -> list[str]:
    """Write a PNG with ``n`` pairs of ``source``, evenly spread, a row each: image and whatever labels there are.

    Classes in PASCAL VOC's colours over the image with their names; near is light; normals as (n + 1) / 2;
    a light confidence is a sure one. Black is unknown or ignored.

    Returns:
        the keys shown.

    Raises:
        UserError: no finished store, or none of the pairs has labels in it.
    """
    store = LabelStore(root)
    rows: list[list[Image.Image]] = []
    titles: list[str] = []
    keys: list[str] = []
    for index in np.linspace(0, len(source) - 1, min(n, len(source))).round().astype(int):
        try:
            pair = source[int(index)]
            image, maps = decode_image(pair.image), store.get(pair.key)
        except (BadPair, KeyError):
            continue
        keys.append(pair.key)
        names = [store.classes[c] for c in np.unique(maps.get("seg", [])) if c < len(store.classes)]
        titles.append(f"{pair.key}  {pair.caption[:90]}" + (f"   [{', '.join(names)}]" if names else ""))
        rows.append([_tile(picture) for picture in _pictures(image, maps, store.ignore_index)])
    if not rows:
        raise UserError(f"none of the pairs of {source.name} has labels in {root}; were they made from other pairs?")
    sheet = _sheet(rows, titles)
    with replacing(Path(out_png)) as temporary:
        sheet.save(temporary, "PNG")
    return keys


def _pictures(image: np.ndarray, maps: dict[str, np.ndarray], ignore: int) -> list[np.ndarray]:
    """The image and each label as (H, W, 3) uint8."""
    pictures = [image]
    if "seg" in maps:
        seg = maps["seg"].astype(int)
        colours = _palette(256)[seg % 256]
        small = np.asarray(Image.fromarray(image).resize(seg.shape[::-1]))
        blend = np.where((seg > 0)[..., None], 0.3 * small + 0.7 * colours, small)
        pictures.append(np.where((seg == ignore)[..., None], 0, blend).astype(np.uint8))
    if "depth" in maps:
        pictures.append(_grey(maps["depth"]))
    if "normal" in maps:
        normal = maps["normal"]
        known = np.linalg.norm(normal, axis=0) > 0.5
        pictures.append((np.moveaxis((normal + 1) * 127.5 * known, 0, -1)).astype(np.uint8))
    if "confidence" in maps:
        pictures.append(_grey(np.log(maps["confidence"] + 1e-6)))
    return pictures


def _grey(values: np.ndarray) -> np.ndarray:
    known = np.isfinite(values)
    low, high = (np.quantile(values[known], [0.01, 0.99])) if known.any() else (0.0, 1.0)
    scaled = np.clip((np.nan_to_num(values) - low) / max(high - low, 1e-9), 0, 1) * 230 + 25
    return np.repeat((scaled * known)[..., None], 3, -1).astype(np.uint8)


def _palette(size: int) -> np.ndarray:
    """PASCAL VOC's label colours: three bits of the label at a time, from the highest bit of each channel down."""
    labels = np.arange(size)
    colours = np.zeros((size, 3), int)
    for bit in range(8):
        for channel in range(3):
            colours[:, channel] |= ((labels >> (3 * bit + channel)) & 1) << (7 - bit)
    return colours


def _tile(picture: np.ndarray) -> Image.Image:
    image = Image.fromarray(picture)
    scale = TILE / max(image.size)
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    return image.resize(size, Image.Resampling.NEAREST if scale >= 1 else Image.Resampling.BICUBIC)


def _sheet(rows: Sequence[Sequence[Image.Image]], titles: Sequence[str]) -> Image.Image:
    columns = max(len(row) for row in rows)
    heights = [max(tile.height for tile in row) + LINE + GAP for row in rows]
    sheet = Image.new("RGB", (columns * (TILE + GAP) + GAP, sum(heights) + GAP), "white")
    draw = ImageDraw.Draw(sheet)
    top = GAP
    for row, title, height in zip(rows, titles, heights, strict=True):
        draw.text((GAP, top), title[: sheet.width // 6], fill="black")
        for column, tile in enumerate(row):
            sheet.paste(tile, (GAP + column * (TILE + GAP), top + LINE))
        top += height
    return sheet
