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
from reports.parts.costs import COST_AXES
from reports.selection import weights_labels, with_label
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
    """A backbone's score, those that are better, and the interval of its place."""

    score: Estimate
    better: tuple[str, ...]
    last: int

    @property
    def first(self) -> int:
        return 1 + len(self.better)


@dataclass
class Leaderboard:
    """Everything that the page shows; ``backbones`` has what is known of each.

    Attributes:
        costs: of each, as a row of ``reports.parts.costs.cost_frame``; some may be missing.
        parents: of all files, under the names of their rows; they have the order of tasks.
    """

    columns: dict[tuple[str, ...], SharedColumn] = field(default_factory=dict)
    backbones: dict[str, dict[str, str | float]] = field(default_factory=dict)
    costs: dict[str, dict[str, Any]] = field(default_factory=dict)
    parents: list[ParentRun] = field(default_factory=list)

    def add(self, results: SharedResults) -> None:
        """Verify a file and add its results. Weights of a name that differ have rows of their own
        (``weights_labels``); a name that others have for other weights gets the file's title added.

        Raises:
            TrackingError: the file is refused.
        """
        scores = check_results(results)
        labels = weights_labels([*results.cells, *results.parents.values()])
        parents = {key: with_label(run, labels) for key, run in results.parents.items()}
        cells = [with_label(cell, labels) for cell in results.cells]
        results = replace(results, parents=parents, cells=cells)
        names = results.new_names(self.parents)
        for parent in results.parents.values():
            name = names.get(parent.backbone, parent.backbone)
            self.parents.append(parent.model_copy(update={"backbone": name}))
            details = self.backbones.setdefault(name, _describe(results, parent))
            devices = [c.device for c in results.cells if c.parent == parent.run_id]
            measured = {cost: parent.costs[cost] for cost in COST_AXES if cost in parent.costs}
            about = {"device": next(iter(devices), ""), "image_size": details["resolution"]}
            self.costs.setdefault(name, {**about, **measured})
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
    sign, shift, scales = columns[0].metric.direction, 0.0, np.ones(1)
    if len(columns) > 1:
        means = np.array([[np.mean([*c.values[n].values()]) for n in names] for c in columns])
        spreads = means.std(axis=1)
        directions = np.array([column.metric.direction for column in columns])
        scales = directions / len(columns) / np.where(spreads, spreads, 1.0)
        sign, shift = 1, float(scales @ np.median(means, axis=1))
    samples = [_score(columns, scales, name) for name in names]
    pairs = list(combinations(range(len(names)), 2))
    gaps = [difference(samples[mine], samples[other]) for mine, other in pairs]
    prior = seed_prior(gaps)
    beats = np.zeros((len(names), len(names)), int)
    for (mine, other), gap in zip(
        pairs, judge_jointly([estimate(g, prior) for g in gaps]), strict=True
    ):
        verdict = gap.verdict(sign)
        beats[mine, other], beats[other, mine] = verdict == "win", verdict == "loss"
    places = {}
    for index, (name, sample) in enumerate(zip(names, samples, strict=True)):
        score = estimate(sample)
        score = replace(score, value=score.value - shift)
        better = tuple(names[other] for other in np.flatnonzero(beats[:, index]))
        places[name] = Place(score, better, len(names) - int(beats[index].sum()))
    return places


def _score(columns: Sequence[SharedColumn], scales: np.ndarray, name: str) -> MetricSample:
    """The weighted sum of a backbone's metrics, over the seeds that it has in all columns; if there
    are none, of the first of each."""
    seeds = set.intersection(*(set(column.values[name]) for column in columns))
    samples = [
        column.sample(name, sorted(seeds) or [*column.values[name]][:1]) for column in columns
    ]
    return weighted_sum(samples, scales)
