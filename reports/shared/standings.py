"""Places of many backbones, with those that cannot be told apart sharing one.

A backbone's place is 1 + the number of backbones that are better beyond doubt; its interval ends at
the number of backbones that are not worse beyond doubt (Mogstad, Romano, Shaikh, Wilhelm, Review of
Economic Studies 2024). A difference is beyond doubt if its interval, corrected for comparing one
backbone with all others (Šidák), excludes zero.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from cliptex_common.files import content_key
from reports.artifacts import PARENT, PROTOCOL
from reports.cell import Cell, ParentRun
from reports.metrics import Metric
from reports.shared.archive import SharedResults
from reports.shared.check import check_results
from reports.stats.intervals import (
    LEVEL,
    MIN_IMAGES,
    half_widths,
    variances_of_differences,
)
from reports.stats.multiplicity import sidak
from reports.stats.resampling import image_weights
from reports.stats.seeds import pooled_variance

RESAMPLES = 200


@dataclass
class SharedColumn:
    """A task under one protocol and version of the data.

    Attributes:
        cell: one of its cells, which says what they have in common.
        conditions: of all of them, but for versions of libraries.
        values: backbone → the main metric with each seed.
        deviations: backbone → with each seed, (R,) the metric over each resample of the images
            minus the metric over all.
        sources: backbone → title of its file.
        images: how many are resampled.
    """

    cell: Cell
    conditions: dict[str, Any]
    images: int
    values: dict[str, list[float]] = field(default_factory=dict)
    deviations: dict[str, list[np.ndarray]] = field(default_factory=dict)
    sources: dict[str, str] = field(default_factory=dict)

    @property
    def metric(self) -> Metric:
        """The declaration of the main metric."""
        return self.cell.declared[self.cell.main]


@dataclass(frozen=True)
class Place:
    """A backbone's score with its half width, and the interval of its place."""

    score: float
    half_width: float
    first: int
    last: int


@dataclass
class Leaderboard:
    """Everything that the page shows; ``backbones`` has what is known of each."""

    columns: dict[tuple[str, str], SharedColumn] = field(default_factory=dict)
    backbones: dict[str, dict[str, str | float]] = field(default_factory=dict)
    weights: dict[tuple[str, int], str] = field(default_factory=dict)

    def add(self, results: SharedResults) -> None:
        """Verify a file and add its results; a name that others have for other weights gets the
        file's title added.

        Raises:
            TrackingError: the file is refused.
        """
        scores = check_results(results)
        names = results.new_names(self.weights)
        for parent in results.parents.values():
            name = names.get(parent.backbone, parent.backbone)
            self.weights[name, parent.seed] = parent.weights
            self.backbones.setdefault(name, _describe(results, parent))
        for cell in results.cells:
            name, own = names.get(cell.backbone, cell.backbone), scores[cell.run_id]
            conditions = results.json(cell, PROTOCOL)
            column = self.columns.setdefault(
                (cell.task, settings_key(conditions)),
                SharedColumn(cell, conditions, len(own.units)),
            )
            if column.sources.setdefault(name, results.title) != results.title:
                continue  # the first file with a result counts
            resampled = own.metrics[cell.main](image_weights(own.units, RESAMPLES))
            value = cell.metrics[cell.main]
            column.values.setdefault(name, []).append(value)
            deviations = np.where(np.isfinite(resampled), resampled - value, 0.0)
            column.deviations.setdefault(name, []).append(deviations)


def settings_key(conditions: Mapping[str, Any]) -> str:
    """Identity of a protocol apart from the versions of libraries."""
    return content_key({name: each for name, each in conditions.items() if name != "libraries"})


def _describe(results: SharedResults, parent: ParentRun) -> dict[str, str | float]:
    size = results.json(parent, PARENT)["backbone"].get("data", {}).get("size", [])
    return {
        "architecture": parent.architecture,
        "parameters": parent.costs.get("parameters", 0.0),
        "resolution": " × ".join(map(str, size)),
        "weights": parent.weights_source,
        "sha256": parent.weights,
        "licence": parent.licence,
        "file": results.title,
        "source": results.manifest.source,
    }


def rank_backbones(columns: Sequence[SharedColumn]) -> dict[str, Place]:
    """Backbone → its place over columns, of those that are in all of them.

    Of one column the score is the metric. Of several it is the mean over them of (metric - median)
    / standard deviation, over the backbones in the column, positive where better.
    """
    names = [name for name in columns[0].values if all(name in c.values for c in columns)]
    if not names:
        return {}
    scores = np.zeros(len(names))
    shifts = np.zeros((len(names), RESAMPLES))
    noise, freedom = np.zeros(len(names)), 0
    for column in columns:
        values = np.array([np.mean(column.values[name]) for name in names])
        scale, shift = float(column.metric.direction), 0.0
        if len(columns) > 1:
            shift = float(np.median(values))
            scale /= len(columns) * (float(values.std()) or 1.0)
        scores += scale * (values - shift)
        for row, name in enumerate(names):
            deviations = np.mean(column.deviations[name], axis=0)
            shifts[row] += scale * np.resize(deviations, RESAMPLES)
        variance, df = pooled_variance([column.values[name] for name in names])
        noise += scale**2 * variance
        freedom += df
    difference = scores[:, None] - scores[None]
    images = min(column.images for column in columns)
    level = sidak(max(len(names) - 1, 1))
    seeds = noise[:, None] + noise[None]
    reach = half_widths(variances_of_differences(shifts), images - 1, seeds, freedom, level)
    if images < MIN_IMAGES:
        reach[:] = np.inf
    better = (difference > reach).sum(axis=0)  # number of backbones that beat each
    worse = (difference > reach).sum(axis=1)
    half = half_widths(shifts.var(axis=1, ddof=1), images - 1, noise, freedom, LEVEL)
    sign = columns[0].metric.direction if len(columns) == 1 else 1
    return {
        name: Place(
            sign * float(scores[row]),
            float(half[row]),
            1 + int(better[row]),
            len(names) - int(worse[row]),
        )
        for row, name in enumerate(names)
    }
