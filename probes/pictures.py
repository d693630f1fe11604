"""Galleries of small pictures of predictions beside the ground truth."""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path, PurePath

import numpy as np
from PIL import Image

from cliptex_common.files import atomic_write
from cliptex_common.images import fit_picture
from reports import records

GALLERY_IMAGES = 48  # images of a gallery
SMALL = 176  # longest side of a gallery's picture, pixels


def write_gallery(
    folder: Path,
    images: Iterable[tuple[str, Mapping[str, np.ndarray]]],
    legend: np.ndarray | None = None,
    flat: bool = False,
    side: int = SMALL,
) -> Path:
    """Write small pictures for a report as a ZIP of picture files, ``reports.records.GALLERY``,
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
    path = folder / PurePath(records.GALLERY).name
    index: list[dict[str, str]] = []
    with atomic_write(path) as temporary, zipfile.ZipFile(temporary, "w") as pack:
        for number, (name, pictures) in enumerate(images):
            entry = {"name": name}
            for role, picture in pictures.items():
                lossless = flat and role != "image"
                entry[role] = f"{number:03d}-{role}.{'png' if lossless else 'webp'}"
                pack.writestr(entry[role], _encode(fit_picture(picture, side), lossless))
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
        image.save(buffer, "PNG")
    else:
        image.save(buffer, "WEBP", quality=80, method=4)
    return buffer.getvalue()
