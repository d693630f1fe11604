"""A picture of labels beside their images: what a look at a label store shows."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from backbones.cliptex.data.source import BadPair, PairSource, decode_image
from backbones.cliptex.labels.store import LabelStore
from backbones.cliptex.tasks import find_task
from common.errors import UserError, nearest
from common.files import atomic_write

TILE = 160
GAP = 4
LINE = 14
LOOKED_AT = 10_000  # pairs among which labelled ones are looked for


def draw_labels(root: Path, source: PairSource, out: Path, n: int = 8) -> list[str]:
    """Write a picture (``.png``, ``.jpg``, ``.webp`` …) with ``n`` pairs of ``source``, evenly
    spread, a row each: image and whatever labels there are, as their tasks draw them. Black is
    unknown. Returns the keys shown.

    Raises:
        UserError: no finished store, none of the pairs has labels in it, or a suffix of no picture.
    """
    kinds = {
        suffix: kind for suffix, kind in Image.registered_extensions().items() if kind in Image.SAVE
    }
    if out.suffix.lower() not in kinds:
        raise UserError(
            f"--out {out} is no picture's name;"
            f" {nearest(out.suffix or '.png', ('.png', '.jpg', '.webp'))}"
        )
    store = LabelStore(root)
    rows: list[list[Image.Image]] = []
    titles: list[str] = []
    keys: list[str] = []
    labelled = [
        index
        for index in _spread(range(len(source)), LOOKED_AT)
        if store.tasks_of(source.key(index))
    ]
    for index in _spread(labelled, n):
        try:
            pair = source[index]
            image, maps = decode_image(pair.image), store.get(pair.key)
        except (BadPair, KeyError):
            continue
        keys.append(pair.key)
        found = {task: names for task, names in store.classes.items() if task in maps}
        named = [
            names[c]
            for task, names in found.items()
            for c in np.unique(maps[task])
            if c < len(names)
        ]
        titles.append(
            f"{pair.key}  {pair.caption[:90]}" + (f"   [{', '.join(named)}]" if named else "")
        )
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
        sheet.save(temporary, kinds[out.suffix.lower()])
    return keys


def _spread(items: Sequence[int], n: int) -> list[int]:
    """At most ``n`` of them, evenly spread."""
    return [
        items[int(place)] for place in np.linspace(0, len(items) - 1, min(n, len(items))).round()
    ]


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
