"""The gallery: the same images, their truth, and every backbone's prediction in a row."""

from __future__ import annotations

import base64
import json
import zipfile
import zlib
from dataclasses import dataclass, field

import numpy as np

from reports.analysis import Analysis
from reports.errors import damaged
from reports.mlflow.query import Store, StoredRun
from reports.selection import TaskProtocol

KINDS = ("segmentation", "detection", "depth", "normals")
EVEN, WORST, APART = 4, 2, 2  # rows of each sort
BUDGET = 2_600_000  # bytes of pictures in a page, before base64


@dataclass(frozen=True)
class Tile:
    """A picture: data URI and what it shows."""

    data: str
    label: str
    score: float | None = None


@dataclass(frozen=True)
class Row:
    """One image: photograph, truth, then each backbone (None where it has no picture)."""

    name: str
    why: str
    image: Tile
    truth: Tile
    predictions: list[tuple[str, Tile | None]]


@dataclass
class Gallery:
    """The rows of one task."""

    column: TaskProtocol
    score_name: str
    rows: list[Row]
    legend: str = ""
    choices: int = 0
    notes: list[str] = field(default_factory=list)


@dataclass
class _Pack:
    """A run's ``gallery.zip``."""

    run: StoredRun
    files: zipfile.ZipFile
    index: dict[str, dict[str, str]]
    legend: str
    sizes: dict[str, int]


def galleries(store: Store, analysis: Analysis, budget: int = BUDGET) -> list[Gallery]:
    """Galleries of all tasks that have pictures: evenly spaced images, then the worst of all, then
    where backbones differ most.

    Each task gets an equal share of ``budget`` (bytes); rows that do not fit are left out.

    Raises:
        TrackingError: a file of pictures is damaged.
    """
    columns = [
        c
        for c in analysis.selection.columns
        if c.kind in KINDS and _packs(store, analysis, c, only_first=True)
    ]
    made = []
    left = budget
    for place, column in enumerate(columns):
        gallery, used = _gallery(store, analysis, column, left // (len(columns) - place))
        left -= used
        if gallery is not None:
            made.append(gallery)
    return made


def _packs(
    store: Store, analysis: Analysis, column: TaskProtocol, only_first: bool = False
) -> dict[str, _Pack]:
    packs = {}
    for backbone in analysis.selection.backbones:
        for cell in analysis.selection.cells.get((backbone, column), [])[:1]:
            path = store.artifact(cell.run, "pictures/gallery.zip")
            if path is None:
                continue
            try:
                files = zipfile.ZipFile(path)
                index = json.loads(files.read("index.json"))
                packs[backbone] = _Pack(
                    cell.run,
                    files,
                    {one["name"]: one for one in index["images"]},
                    index["legend"] or "",
                    {one.filename: one.file_size for one in files.infolist()},
                )
            except (OSError, ValueError, KeyError, TypeError, zipfile.BadZipFile) as error:
                raise damaged("pictures/gallery.zip", cell.run.id, cell.run.name, error) from error
            if only_first:
                return packs
    return packs


def _gallery(
    store: Store, analysis: Analysis, column: TaskProtocol, budget: int
) -> tuple[Gallery | None, int]:
    packs = _packs(store, analysis, column)
    names = [
        name
        for name in next(iter(packs.values())).index
        if all(name in pack.index for pack in packs.values())
    ]
    if not names:
        return None, 0
    scores, score_name, sign = _scores(analysis, column, list(packs), names)
    chosen = _choose(names, scores, sign)
    first = next(iter(packs.values()))
    rows: list[Row] = []
    used = 0
    for name, why in chosen:
        files = [(first, first.index[name][role]) for role in ("image", "truth")]
        files += [(pack, pack.index[name]["prediction"]) for pack in packs.values()]
        size = sum(pack.sizes.get(file, 0) for pack, file in files)
        if rows and used + size > budget:
            continue
        used += size
        place = names.index(name)
        predictions: list[tuple[str, Tile | None]] = []
        for backbone in analysis.selection.backbones:
            if backbone not in packs:
                predictions.append((backbone, None))
                continue
            pack = packs[backbone]
            value = (
                float(scores[backbone][place])
                if backbone in scores and np.isfinite(scores[backbone][place])
                else None
            )
            predictions.append(
                (backbone, Tile(_uri(pack, pack.index[name]["prediction"]), backbone, value))
            )
        rows.append(
            Row(
                name,
                why,
                Tile(_uri(*files[0]), "image"),
                Tile(_uri(*files[1]), "truth"),
                predictions,
            )
        )
    legend = _uri(first, first.legend) if first.legend else ""
    gallery = Gallery(column, score_name, rows, legend, len(names))
    if len(rows) < len(chosen):
        gallery.notes.append(f"{len(chosen) - len(rows)} rows are left out to keep the page small")
    return gallery, used


def _scores(
    analysis: Analysis, column: TaskProtocol, backbones: list[str], names: list[str]
) -> tuple[dict[str, np.ndarray], str, int]:
    """Backbone → each pictured image's own score (NaN where it has none)."""
    found, score_name, sign = {}, "", 1
    for backbone in backbones:
        scores = analysis.scores.get((backbone, column))
        if scores is None:
            continue
        place = {image: number for number, image in enumerate(scores.images)}
        found[backbone] = np.array(
            [scores.each[place[n]] if n in place else np.nan for n in names], np.float64
        )
        score_name, sign = scores.each_name, scores.each_sign
    return found, score_name, sign


def _choose(names: list[str], scores: dict[str, np.ndarray], sign: int) -> list[tuple[str, str]]:
    """(image, why it is shown), without repeats."""
    chosen = {}
    for place in np.unique(
        np.linspace(0, len(names) - 1, min(EVEN, len(names))).round().astype(int)
    ):
        chosen[names[place]] = "evenly spaced"
    if scores:
        table = sign * np.stack(list(scores.values()))
        known = np.isfinite(table).all(axis=0)
        for why, key, count in (
            ("worst for all", table.mean(axis=0), WORST),
            ("backbones differ most", -np.ptp(table, axis=0), APART if len(scores) > 1 else 0),
        ):
            left = [p for p in np.argsort(np.where(known, key, np.inf), kind="stable") if known[p]]
            for place in [p for p in left if names[p] not in chosen][:count]:
                chosen[names[place]] = why
    return list(chosen.items())


def _uri(pack: _Pack, file: str) -> str:
    kind = "png" if file.endswith(".png") else "webp"
    try:
        content = pack.files.read(file)
    except (OSError, KeyError, zipfile.BadZipFile, zlib.error) as error:
        raise damaged("pictures/gallery.zip", pack.run.id, pack.run.name, error) from error
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"
