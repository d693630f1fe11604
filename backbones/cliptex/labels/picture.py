"""A picture of labels beside their images."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from backbones.cliptex.data.source import BadPair, PairSource, decode_image
from backbones.cliptex.labels.store import LabelStore
from backbones.cliptex.tasks import find_task
from cliptex_common.dense_maps.pictures import spread_indices, write_grid
from cliptex_common.errors import UserError

SIDE = 160  # longest side of a picture, pixels
CANDIDATES = 10_000  # pairs among which labelled ones are searched


def draw_labels(root: Path, source: PairSource, out: Path, n: int = 8) -> None:
    """Write a picture (``.png``, ``.jpg``, ``.webp`` …) with ``n`` pairs of ``source``, a row each.

    The pairs are evenly spread. A row shows the image and its labels, as their tasks draw them;
    black is unknown.

    Raises:
        UserError: the store is not finished, none of the pairs has labels in it, or the suffix is
            not that of an image format.
    """
    if Image.registered_extensions().get(out.suffix.lower()) not in Image.SAVE:
        raise UserError(f"--out {out} is no picture's name; use .png, .jpg or .webp")
    store = LabelStore(root)
    labelled = [
        index
        for index in spread_indices(len(source), CANDIDATES)
        if store.tasks_of(source.key(index))
    ]
    rows: list[list[np.ndarray]] = []
    captions: list[str] = []
    for index in (labelled[row] for row in spread_indices(len(labelled), n)):
        try:
            pair = source[index]
            image, maps = decode_image(pair.image), store.get(pair.key)
        except (BadPair, KeyError):
            continue
        caption = f"{pair.key}  {' '.join(pair.caption.split())[:90]}"
        for task in maps.keys() & store.classes.keys():
            names = store.classes[task]
            present = [names[c] for c in np.unique(maps[task]) if c < len(names)]
            caption += f"   [{', '.join(present)}]"
        captions.append(caption)
        pictures = [
            find_task(name).picture(maps[name], image) if name in maps else np.zeros_like(image)
            for name in store.tasks
        ]
        rows.append([image, *pictures])
    if not rows:
        raise UserError(
            f"none of the pairs of {source.name} has labels in {root}; were they made from other"
            " pairs?"
        )
    write_grid(out, ("image", *store.tasks), rows, captions, side=SIDE)
