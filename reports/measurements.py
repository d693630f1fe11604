"""What the selected runs hold: metrics with each seed, and over resamples of their images."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from operator import methodcaller
from typing import Any

import numpy as np

from reports.artifacts import DETECTIONS, PER_IMAGE
from reports.cell import Cell
from reports.detections import TYPES
from reports.errors import damaged
from reports.mlflow.query import Store
from reports.selection import Selection, TaskColumn
from reports.stats.intervals import MIN_IMAGES
from reports.stats.per_image import ClassScores, ImageScores, agrees, image_scores
from reports.stats.resampling import MetricSample, image_weights

GridKey = tuple[str, TaskColumn]  # backbone, column
Key = tuple[str, TaskColumn, str]  # backbone, column, metric


@dataclass(frozen=True)
class Measurements:
    """What the selected runs hold.

    Attributes:
        scores: per-image scores of each backbone's first seed, to choose pictures by.
        images: column → number of images that its numbers are computed from.
        classes: the metric of each class, one for each seed.
        refused: (backbone, column) → why its scores are not used.
        inconsistent: numbers that differ from those of their per-image scores.
        unscored: numbers with resamples that have nothing to score, and how many.
    """

    samples: dict[Key, MetricSample]
    scores: dict[GridKey, ImageScores]
    images: dict[TaskColumn, int]
    classes: dict[GridKey, list[ClassScores]]
    refused: dict[GridKey, str]
    inconsistent: list[str]
    unscored: list[str]


def shown_metrics(column: TaskColumn) -> list[str]:
    """Metrics of a column that the detailed tables show, the main one first."""
    return [name for name, metric in column.metrics if metric.shown or name == column.main]


def measure(store: Store, selection: Selection, advance: Callable[[], None]) -> Measurements:
    """Read and resample the per-image scores of all columns."""
    measured = Measurements({}, {}, {}, {}, {}, [], [])
    for column in selection.columns:
        in_column = selection.column_cells(column)
        loaded = parallel(lambda cell: load_scores(store, cell), in_column)
        by_run = {cell.run_id: scores for cell, scores in zip(in_column, loaded, strict=True)}
        problems = find_problems(loaded)
        for backbone in selection.backbones:
            if cells := selection.cells.get((backbone, column), []):
                scores = [by_run[cell.run_id] for cell in cells]
                if problem := next((problems[id(s)] for s in scores if id(s) in problems), ""):
                    measured.refused[backbone, column] = problem
                    continue
                if scores[0]:
                    measured.scores[backbone, column] = scores[0]
                classes = [each.classes for each in scores if each and each.classes]
                measured.classes[backbone, column] = classes
                _add_samples(measured, (backbone, column), cells, [] if None in scores else scores)
            advance()
    image_weights.cache_clear()
    return measured


def find_problems(loaded: Sequence[ImageScores | None]) -> dict[int, str]:
    """Why per-image scores of a column must not be used, by their ``id``.

    They are of other images than most, or not finite where others are.
    """
    stored = [scores for scores in loaded if scores]
    if not stored:
        return {}
    units = Counter(scores.units for scores in stored).most_common(1)[0][0]
    problems = {id(s): "its scores are of other images" for s in stored if s.units != units}
    same = [scores for scores in stored if id(scores) not in problems]
    finite = np.stack([scores.finite for scores in same])
    bad = (finite.any(axis=0) & ~finite).sum(axis=1)
    for scores, count in zip(same, bad, strict=True):
        if count:
            problems[id(scores)] = f"{count} of {finite.shape[1]} images have no finite score"
    return problems


def load_scores(store: Store, cell: Cell) -> ImageScores | None:
    """The per-image scores of a cell; None if it stored none.

    Raises:
        TrackingError: the artifact exists but cannot be read.
    """
    arrays = store.arrays(cell, PER_IMAGE)
    detections = store.arrays(cell, DETECTIONS, TYPES) if cell.kind == "detection" else None
    try:
        return image_scores(cell.kind, arrays, detections) if arrays else None
    except (ValueError, TypeError, KeyError, IndexError) as error:
        raise damaged(PER_IMAGE, cell.run_id, cell.name, error) from error


def _add_samples(
    measured: Measurements, key: GridKey, cells: Sequence[Cell], scores: Sequence[ImageScores]
) -> None:
    """Add the samples of a backbone's column.

    Args:
        scores: of each cell, over the same units; empty where a cell has none.
    """
    backbone, column = key
    images = scores[0].units if scores else ()
    rows = min((score.most_resamples for score in scores), default=0)
    weights = image_weights(images)[:rows] if scores else None
    measured.images.setdefault(column, 0)
    for metric in shown_metrics(column):
        usable = [
            number
            for number, cell in enumerate(cells)
            if np.isfinite(cell.metrics.get(metric, np.nan))
        ]
        if not usable:
            continue
        seeds = tuple(cells[number].seed for number in usable)
        values = np.array([cells[number].metrics[metric] for number in usable])
        sample = MetricSample(seeds, values)
        if scores and all(metric in score.metrics for score in scores):
            used = [scores[number] for number in usable]
            again = np.array([score.value(metric) for score in used])
            consistent = agrees(again, values)
            label = f"{backbone} · {column.title} · {metric}"
            if consistent.all():
                functions = [score.metrics[metric] for score in used]
                sampled = np.stack(parallel(methodcaller("__call__", weights), functions))
                valid = np.isfinite(sampled).all(axis=0)
                if valid.sum() >= MIN_IMAGES:
                    sampled = np.where(valid, sampled, np.nan)
                    sample = MetricSample(seeds, values, sampled, len(images))
                if not valid.all():
                    share = f"{valid.size - valid.sum()} of {valid.size}"
                    measured.unscored.append(f"{label} ({share})")
            else:
                wrong = np.flatnonzero(~consistent)[0]
                measured.inconsistent.append(
                    f"{label} (stored {values[wrong]:.4g}, from images {again[wrong]:.4g})"
                )
        measured.images[column] = max(sample.images, measured.images[column])
        measured.samples[backbone, column, metric] = sample


def parallel(function: Callable[[Any], Any], items: Iterable[Any]) -> list[Any]:
    """``function`` of each item in threads: numpy and zlib release the interpreter's lock."""
    with ThreadPoolExecutor() as pool:
        return list(pool.map(function, items))
