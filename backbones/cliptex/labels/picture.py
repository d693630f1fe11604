"""A picture of labels beside their images."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageOps

from backbones.cliptex.data.source import BadPair, PairSource, decode_image
from backbones.cliptex.labels.store import LabelStore
from backbones.cliptex.tasks import find_task
from cliptex_common.dense_maps.pictures import spread_indices
from cliptex_common.errors import UserError
from cliptex_common.files import atomic_write

TILE = 160
GAP = 4
LINE = 14
CANDIDATES = 10_000  # pairs among which labelled ones are searched


def draw_labels(root: Path, source: PairSource, out: Path, n: int = 8) -> list[str]:
    """Write a picture (``.png``, ``.jpg``, ``.webp`` …) with ``n`` pairs of ``source``, a row each.

    The pairs are evenly spread. A row shows the image and its labels, as their tasks draw them;
    black is unknown.

    Returns:
        the keys shown.

    Raises:
        UserError: the store is not finished, none of the pairs has labels in it, or the suffix is
            not that of an image format.
    """
    image_format = Image.registered_extensions().get(out.suffix.lower())
    if image_format not in Image.SAVE:
        raise UserError(f"--out {out} is no picture's name; use .png, .jpg or .webp")
    store = LabelStore(root)
    rows: list[list[Image.Image]] = []
    titles: list[str] = []
    keys: list[str] = []
    labelled = [
        index
        for index in spread_indices(len(source), CANDIDATES)
        if store.tasks_of(source.key(index))
    ]
    for index in (labelled[row] for row in spread_indices(len(labelled), n)):
        try:
            pair = source[index]
            image, maps = decode_image(pair.image), store.get(pair.key)
        except (BadPair, KeyError):
            continue
        keys.append(pair.key)
        title = f"{pair.key}  {pair.caption[:90]}"
        for task in maps.keys() & store.classes.keys():
            names = store.classes[task]
            present = [names[c] for c in np.unique(maps[task]) if c < len(names)]
            title += f"   [{', '.join(present)}]"
        titles.append(title)
        rows.append(
            [
                _tile(image),
                *(_tile(find_task(name).picture(label, image)) for name, label in maps.items()),
            ]
        )
    if not rows:
        raise UserError(
            f"none of the pairs of {source.name} has labels in {root}; were they made from other"
            " pairs?"
        )
    sheet = _sheet(rows, titles)
    with atomic_write(out) as temporary:
        sheet.save(temporary, image_format)
    return keys


def _tile(picture: np.ndarray) -> Image.Image:
    image = Image.fromarray(picture)
    enlarged = max(image.size) <= TILE
    resampling = Image.Resampling.NEAREST if enlarged else Image.Resampling.BICUBIC
    return ImageOps.contain(image, (TILE, TILE), resampling)


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
