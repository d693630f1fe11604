"""Places of many backbones, with those that cannot be told apart sharing one.

A backbone's place is 1 + the number of backbones that are better; its interval ends at the number
of backbones that are not worse (Mogstad, Romano, Shaikh, Wilhelm, Review of Economic Studies 2024).
The differences of all pairs are judged jointly, so all places hold together.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import combinations
from typing import Any

import numpy as np

from cliptex_common.files import content_key
from reports.artifacts import PARENT, PROTOCOL
from reports.cell import Cell, ParentRun
from reports.metrics import Metric
from reports.shared.archive import SharedResults
from reports.shared.check import check_results
from reports.stats.intervals import Estimate, estimate, judge_jointly, seed_prior
from reports.stats.resampling import MetricSample, difference, image_weights, weighted_sum

RESAMPLES = 200


@dataclass
class SharedColumn:
    """A task under one protocol and version of the data.

    Attributes:
        cell: one of its cells, which says what they have in common.
        conditions: of all of them, but for versions of libraries.
        values: backbone → seed → the main metric.
        resamples: backbone → seed → (R,) the metric over each resample of the images.
        sources: backbone → title of its file.
        images: how many are resampled.
    """

    cell: Cell
    conditions: dict[str, Any]
    images: int
    values: dict[str, dict[int, float]] = field(default_factory=dict)
    resamples: dict[str, dict[int, np.ndarray]] = field(default_factory=dict)
    sources: dict[str, str] = field(default_factory=dict)

    @property
    def metric(self) -> Metric:
        """The declaration of the main metric."""
        return self.cell.declared[self.cell.main]

    def sample(self, backbone: str, seeds: Sequence[int]) -> MetricSample:
        """The main metric of a backbone with these seeds."""
        values = np.array([self.values[backbone][seed] for seed in seeds])
        resamples = np.stack([self.resamples[backbone][seed] for seed in seeds])
        return MetricSample(tuple(seeds), values, resamples, self.images)


@dataclass(frozen=True)
class Place:
    """A backbone's score, and the interval of its place."""

    score: Estimate
    first: int
    last: int


@dataclass
class Leaderboard:
    """Everything that the page shows; ``backbones`` has what is known of each.

    Attributes:
        parents: of all files, which have the order of tasks.
    """

    columns: dict[tuple[str, ...], SharedColumn] = field(default_factory=dict)
    backbones: dict[str, dict[str, str | float]] = field(default_factory=dict)
    weights: dict[tuple[str, int], str] = field(default_factory=dict)
    parents: list[ParentRun] = field(default_factory=list)

    def add(self, results: SharedResults) -> None:
        """Verify a file and add its results; a name that others have for other weights gets the
        file's title added.

        Raises:
            TrackingError: the file is refused.
        """
        scores = check_results(results)
        names = results.new_names(self.weights)
        self.parents += results.parents.values()
        for parent in results.parents.values():
            name = names.get(parent.backbone, parent.backbone)
            self.weights[name, parent.seed] = parent.weights
            self.backbones.setdefault(name, _describe(results, parent))
        for cell in results.cells:
            name, own = names.get(cell.backbone, cell.backbone), scores[cell.run_id]
            conditions = results.json(cell, PROTOCOL)
            column = self.columns.setdefault(
                (cell.task, cell.kind, settings_key(conditions)),
                SharedColumn(cell, conditions, len(own.units)),
            )
            if column.sources.setdefault(name, results.title) != results.title:
                continue  # the first file with a result counts
            resampled = own.metrics[cell.main](image_weights(own.units, RESAMPLES))
            column.values.setdefault(name, {})[cell.seed] = cell.metrics[cell.main]
            column.resamples.setdefault(name, {})[cell.seed] = np.resize(resampled, RESAMPLES)


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
    sign = columns[0].metric.direction
    shift, scales = 0.0, [1.0]
    if len(columns) > 1:
        sign, scales = 1, []
        for column in columns:
            means = [np.mean([*column.values[name].values()]) for name in names]
            scale = column.metric.direction / len(columns) / (float(np.std(means)) or 1.0)
            scales.append(scale)
            shift += scale * float(np.median(means))
    samples = {name: _score(columns, scales, name) for name in names}
    pairs = list(combinations(names, 2))
    gaps = [difference(samples[mine], samples[other]) for mine, other in pairs]
    prior = seed_prior(gaps, independent=len(names) - 1)
    better = dict.fromkeys(names, 0)  # number of backbones that beat each
    worse = dict.fromkeys(names, 0)
    for pair, gap in zip(pairs, judge_jointly([estimate(g, prior) for g in gaps]), strict=True):
        verdict = gap.verdict(sign)
        if verdict in ("win", "loss"):
            winner, loser = pair if verdict == "win" else pair[::-1]
            better[loser] += 1
            worse[winner] += 1
    places = {}
    for name, sample in samples.items():
        score = estimate(sample)
        score = replace(score, value=score.value - shift)
        places[name] = Place(score, 1 + better[name], len(names) - worse[name])
    return places


def _score(columns: Sequence[SharedColumn], scales: Sequence[float], name: str) -> MetricSample:
    """The weighted sum of a backbone's metrics, over the seeds that it has in all columns; if there
    are none, of the first of each."""
    seeds = set.intersection(*(set(column.values[name]) for column in columns))
    samples = [
        column.sample(name, sorted(seeds) or [*column.values[name]][:1]) for column in columns
    ]
    return weighted_sum(samples, scales)
