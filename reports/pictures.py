"""The pictures of a report: feature maps of backbones, and the gallery of their predictions."""

from __future__ import annotations

import base64
import io
import json
import zipfile
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
from PIL import Image

from cliptex_common.images import open_image, to_rgb
from reports.comparison import Analysis
from reports.records import DAMAGED, FEATURES, GALLERY, Cell, TrackingError, damaged
from reports.render import data_uri
from reports.selection import TaskColumn
from reports.store import Store

FEATURES_BUDGET = 1_200_000  # bytes of maps in a page, before base64
Arrays = Mapping[str, np.ndarray]


@dataclass(frozen=True)
class FeatureMap:
    """The map of one backbone.

    Attributes:
        components: its first three as the colours of a PNG, a data URI: all images in a row.
        explained: shares of the variance of these three; retained: of those in ``data``.
        data: (N, height, width, K) int8 principal components in base64; '' where it is too large.
        scale: (K,) what each is multiplied by; centre: (K + 1,) see ``probes``.
    """

    backbone: str
    components: str
    explained: list[float]
    retained: float
    height: int
    width: int
    data: str
    scale: list[float]
    centre: list[float]


@dataclass(frozen=True)
class FeaturePictures:
    """The maps of the same images.

    Attributes:
        subject: where the images are from.
        strip: the images in a row, a data URI.
    """

    subject: str
    strip: str
    names: list[str]
    maps: list[FeatureMap] = field(default_factory=list)


def read_feature_pictures(store: Store, analysis: Analysis) -> FeaturePictures | None:
    """Those of the dataset that has them of most backbones, of each backbone's first seed; None if
    there are none.

    Raises:
        TrackingError: an artifact is damaged.
    """
    selection = analysis.selection
    by_images: dict[tuple[str, ...], dict[str, Arrays]] = defaultdict(dict)
    subjects: dict[tuple[str, ...], str] = {}
    for column in selection.columns:
        for name in selection.backbones:
            for cell in selection.cells.get((name, column), [])[:1]:
                if arrays := store.arrays(cell, FEATURES):
                    images = (cell.dataset, *arrays["image"].tolist())
                    subjects.setdefault(images, cell.dataset)
                    by_images[images].setdefault(name, arrays)
    if not by_images:
        return None
    images = max(by_images, key=lambda images: len(by_images[images]))  # of equal ones the first
    ordered = {
        name: by_images[images][name] for name in selection.backbones if name in by_images[images]
    }
    return make_feature_pictures(subjects[images], ordered)


def make_feature_pictures(
    subject: str, features: Mapping[str, Arrays], budget: int = FEATURES_BUDGET
) -> FeaturePictures:
    """Pictures of arrays that ``probes.pictures`` made of the same images.

    Args:
        features: by backbone.
        budget: bytes; maps that do not fit have no likeness, only components.
    """
    first = next(iter(features.values()))
    strip = data_uri("webp", first["strip"].tobytes())
    pictures = FeaturePictures(subject, strip, first["image"].tolist())
    for name, arrays in features.items():
        data = arrays["map"].tobytes()
        fits = len(data) <= budget
        budget -= fits * len(data)
        _, height, width, _ = arrays["map"].shape
        explained = arrays["explained"].tolist()
        pictures.maps.append(
            FeatureMap(
                name,
                _row_of_pictures(arrays["colours"]),
                explained[:3],
                sum(explained),
                height,
                width,
                base64.b64encode(data).decode() if fits else "",
                arrays["scale"].tolist(),
                arrays["centre"].tolist(),
            )
        )
    return pictures


def _row_of_pictures(colours: np.ndarray) -> str:
    """(N, h, w, 3) pictures in a row."""
    buffer = io.BytesIO()
    Image.fromarray(np.concatenate(colours, axis=1)).save(buffer, "PNG", optimize=True)
    return data_uri("png", buffer.getvalue())


EVEN, WORST, DIFFERENT = 4, 2, 2  # rows of each kind
GALLERY_BUDGET = 2_600_000  # bytes of pictures in a page, before base64


class Tile(NamedTuple):
    """A picture: a data URI, '' if it is missing, and the score of this image; NaN if unknown."""

    label: str
    data: str
    score: float


@dataclass(frozen=True)
class GalleryRow:
    """The picture of one image, its ground truth, and each backbone's prediction."""

    name: str
    reason: str
    tiles: list[Tile]


@dataclass(frozen=True)
class Gallery:
    """The rows of one task, selected among ``candidates`` pictured images."""

    column: TaskColumn
    score_name: str
    rows: list[GalleryRow]
    legend: str
    candidates: int


class Pack:
    """A run's zip file of pictures, some of which may be missing. Raises one of ``DAMAGED``."""

    def __init__(self, path: Path) -> None:
        self.files = zipfile.ZipFile(path)
        if name := self.files.testzip():
            raise ValueError(name)
        index = json.loads(self.files.read("index.json"))
        self.images = {image["name"]: image for image in index["images"]}
        self.legend = index["legend"] or ""
        self.sizes = {member.filename: member.file_size for member in self.files.infolist()}

    def size(self, image: str, role: str) -> int:
        return self.sizes.get(self.images[image].get(role), 0)

    def uri(self, image: str, role: str) -> str:
        """A picture as a data URI, '' if it is missing."""
        return self.file_uri(self.images[image].get(role))

    def pixels(self, file: str | None) -> np.ndarray:
        """A file as (H, W, 3) uint8 RGB; a white dot if it is missing."""
        if file not in self.sizes:
            return np.full((1, 1, 3), 255, np.uint8)
        return np.asarray(to_rgb(open_image(io.BytesIO(self.files.read(file)))))

    def file_uri(self, file: str | None) -> str:
        """A file as a data URI, '' if it is missing."""
        if file not in self.sizes:
            return ""
        return data_uri("png" if file.endswith(".png") else "webp", self.files.read(file))


def galleries(
    store: Store, analysis: Analysis, budget: int = GALLERY_BUDGET
) -> tuple[list[Gallery], list[str]]:
    """Galleries of all tasks that have pictures, and why pictures are missing.

    Evenly spaced images come first, then the worst for all, then those on which backbones differ
    most. Each task gets an equal share of ``budget`` (bytes); rows that do not fit are left out.
    """
    notes: list[str] = []
    packs = {
        column: column_packs
        for column in analysis.selection.columns
        if (column_packs := _packs(store, analysis, column, notes))
    }
    result = []
    for index, column in enumerate(packs):
        gallery, used = _gallery(analysis, column, packs[column], budget // (len(packs) - index))
        budget -= used
        if gallery.rows:
            result.append(gallery)
    return result, notes


def _packs(
    store: Store, analysis: Analysis, column: TaskColumn, notes: list[str]
) -> dict[str, Pack]:
    """Backbone → the pictures of its first seed."""
    packs = {}
    for name in analysis.selection.backbones:
        for cell in analysis.selection.cells.get((name, column), [])[:1]:
            try:
                packs[name] = read_pack(store, cell)
            except TrackingError as error:
                notes.append(f"No pictures of {name} on {column.title}: {error}.")
    return {name: pack for name, pack in packs.items() if pack}


def read_pack(store: Store, cell: Cell) -> Pack | None:
    """The pictures of a cell; None if it has none. Raises ``TrackingError`` if they are damaged."""
    path = store.artifact(cell, GALLERY)
    try:
        return None if path is None else Pack(path)
    except DAMAGED as error:
        raise damaged(GALLERY, cell.run_id, cell.name, error) from error


def _gallery(
    analysis: Analysis, column: TaskColumn, packs: dict[str, Pack], budget: int
) -> tuple[Gallery, int]:
    """The gallery of a task, and the bytes of its pictures."""
    first = next(iter(packs.values()))
    names = [name for name in first.images if all(name in pack.images for pack in packs.values())]
    own = {b: analysis.scores[b, column] for b in packs if (b, column) in analysis.scores}
    score = next(iter(own.values()), None)
    by_image = {b: pd.Series(each.of_images(), each.images, float) for b, each in own.items()}
    scores = pd.DataFrame(by_image).reindex(names)
    rows: list[GalleryRow] = []
    used = 0
    for name, reason in _select(scores, score.direction if score else 1).items():
        pictures: list[tuple[str, Pack | None, str]]
        pictures = [("image", first, "image"), ("ground truth", first, "truth")]
        pictures += [(b, packs.get(b), "prediction") for b in analysis.selection.backbones]
        size = sum(pack.size(name, role) for _, pack, role in pictures if pack)
        if rows and used + size > budget:
            continue
        used += size
        own_scores = scores.loc[name].to_dict()
        tiles = [
            Tile(label, pack.uri(name, role) if pack else "", own_scores.get(label, np.nan))
            for label, pack, role in pictures
        ]
        rows.append(GalleryRow(name, reason, tiles))
    legend = first.file_uri(first.legend)
    return Gallery(column, score.score_name if score else "", rows, legend, len(names)), used


def _select(scores: pd.DataFrame, sign: int) -> dict[str, str]:
    """Image → why it is shown.

    Args:
        scores: of images (down) by backbone; a backbone without any has no column.
    """
    spaced = np.linspace(0, len(scores) - 1, min(EVEN, len(scores))).round().astype(int)
    selected = dict.fromkeys(scores.index[spaced], "evenly spaced")
    if scores.empty:
        return selected
    table = sign * scores.dropna()
    criteria = [("worst for all", table.mean(axis=1), WORST)]
    if len(scores.columns) > 1:
        spread = table.max(axis=1) - table.min(axis=1)
        criteria.append(("backbones differ most", -spread, DIFFERENT))
    for reason, key, count in criteria:
        remaining = key.drop(list(selected), errors="ignore").sort_values(kind="stable")
        selected |= dict.fromkeys(remaining.index[:count], reason)
    return selected
