"""The gallery: images, their ground truth, and every backbone's prediction in a row."""

from __future__ import annotations

import base64
import json
import zipfile
import zlib
from dataclasses import dataclass

import numpy as np

from reports.analysis import Analysis
from reports.artifacts import GALLERY
from reports.cell import Cell
from reports.errors import damaged
from reports.mlflow.query import Store
from reports.selection import TaskColumn

EVEN, WORST, DIFFERENT = 4, 2, 2  # rows of each kind
BUDGET = 2_600_000  # bytes of pictures in a page, before base64


@dataclass(frozen=True)
class Tile:
    """A picture: data URI, and the image's own score."""

    data: str
    score: float | None = None


@dataclass(frozen=True)
class GalleryRow:
    """One image: data URIs of it and its ground truth, and each backbone's prediction (None if
    missing)."""

    name: str
    reason: str
    image: str
    ground_truth: str
    predictions: list[tuple[str, Tile | None]]


@dataclass
class Gallery:
    """The rows of one task, selected among ``candidates`` pictured images."""

    column: TaskColumn
    score_name: str
    rows: list[GalleryRow]
    legend: str = ""
    candidates: int = 0


class _Pack:
    """A run's zip file of pictures."""

    def __init__(self, path: object, cell: Cell) -> None:
        self.cell = cell
        try:
            self.files = zipfile.ZipFile(path)  # type: ignore[call-overload]
            index = json.loads(self.files.read("index.json"))
            self.images = {image["name"]: image for image in index["images"]}
            self.legend = index["legend"] or ""
        except (OSError, ValueError, KeyError, TypeError, zipfile.BadZipFile) as error:
            raise damaged(GALLERY, cell.run_id, cell.name, error) from error

    def size(self, image: str, role: str) -> int:
        return self.files.getinfo(self.images[image][role]).file_size

    def uri(self, file: str) -> str:
        """A picture as a data URI."""
        try:
            content = self.files.read(file)
        except (OSError, KeyError, zipfile.BadZipFile, zlib.error) as error:
            raise damaged(GALLERY, self.cell.run_id, self.cell.name, error) from error
        kind = "png" if file.endswith(".png") else "webp"
        return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"


def galleries(store: Store, analysis: Analysis, budget: int = BUDGET) -> list[Gallery]:
    """Galleries of all tasks that have pictures.

    Evenly spaced images come first, then the worst for all, then those on which backbones differ
    most. Each task gets an equal share of ``budget`` (bytes); rows that do not fit are left out.

    Raises:
        TrackingError: a file of pictures is damaged.
    """
    packs = {
        column: column_packs
        for column in analysis.selection.columns
        if (column_packs := _packs(store, analysis, column))
    }
    result = []
    for index, column in enumerate(packs):
        gallery, used = _gallery(analysis, column, packs[column], budget // (len(packs) - index))
        budget -= used
        if gallery.rows:
            result.append(gallery)
    return result


def _packs(store: Store, analysis: Analysis, column: TaskColumn) -> dict[str, _Pack]:
    """Backbone → the pictures of its first seed."""
    packs = {}
    for name in analysis.selection.backbones:
        for cell in analysis.selection.cells.get((name, column), [])[:1]:
            path = store.artifact(cell, GALLERY)
            if path is not None:
                packs[name] = _Pack(path, cell)
    return packs


def _gallery(
    analysis: Analysis, column: TaskColumn, packs: dict[str, _Pack], budget: int
) -> tuple[Gallery, int]:
    """The gallery of a task, and the bytes of its pictures."""
    first = next(iter(packs.values()))
    names = [name for name in first.images if all(name in pack.images for pack in packs.values())]
    scores, score_name, sign = _scores(analysis, column, list(packs), names)
    rows: list[GalleryRow] = []
    used = 0
    for name, reason in _select(names, scores, sign).items():
        size = first.size(name, "image") + first.size(name, "truth")
        size += sum(pack.size(name, "prediction") for pack in packs.values())
        if rows and used + size > budget:
            continue
        used += size
        predictions: list[tuple[str, Tile | None]] = []
        for backbone in analysis.selection.backbones:
            pack = packs.get(backbone)
            tile = None
            if pack:
                score = scores[backbone][names.index(name)] if backbone in scores else np.nan
                value = float(score) if np.isfinite(score) else None
                tile = Tile(pack.uri(pack.images[name]["prediction"]), value)
            predictions.append((backbone, tile))
        image, ground_truth = (first.uri(first.images[name][role]) for role in ("image", "truth"))
        rows.append(GalleryRow(name, reason, image, ground_truth, predictions))
    legend = first.uri(first.legend) if first.legend else ""
    return Gallery(column, score_name, rows, legend, len(names)), used


def _scores(
    analysis: Analysis, column: TaskColumn, backbones: list[str], names: list[str]
) -> tuple[dict[str, np.ndarray], str, int]:
    """Backbone → each pictured image's score (NaN if it has none), their name and sign."""
    result, score_name, sign = {}, "", 1
    for backbone in backbones:
        scores = analysis.scores.get((backbone, column))
        if scores is not None:
            by_image = dict(zip(scores.images, scores.of_images(), strict=True))
            result[backbone] = np.array([by_image.get(name, np.nan) for name in names], np.float64)
            score_name, sign = scores.score_name, scores.direction
    return result, score_name, sign


def _select(names: list[str], scores: dict[str, np.ndarray], sign: int) -> dict[str, str]:
    """Image → why it is shown."""
    spaced = np.linspace(0, len(names) - 1, min(EVEN, len(names))).round().astype(int)
    selected = {names[index]: "evenly spaced" for index in spaced}
    if not scores:
        return selected
    table = sign * np.stack(list(scores.values()))
    valid = np.isfinite(table).all(axis=0)
    criteria = [("worst for all", table.mean(axis=0), WORST)]
    if len(scores) > 1:
        criteria.append(("backbones differ most", -np.ptp(table, axis=0), DIFFERENT))
    for reason, key, count in criteria:
        order = np.argsort(np.where(valid, key, np.inf), kind="stable")
        remaining = [names[i] for i in order if valid[i] and names[i] not in selected]
        selected |= dict.fromkeys(remaining[:count], reason)
    return selected
