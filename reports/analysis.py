"""From the selected runs to numbers with intervals, which all parts of a report are made of."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import pandas as pd

from reports.judgement import Judgement, judge_differences
from reports.measurements import Key, Measurements, measure, shown_metrics
from reports.mlflow.query import Store
from reports.selection import Selection, TaskColumn
from reports.stats.gains import task_weights
from reports.stats.intervals import Estimate, estimate
from reports.stats.resampling import MetricSample, difference


@dataclass(frozen=True)
class Analysis(Judgement, Measurements):
    """All numbers of a report.

    Attributes:
        best: (column, metric) → the backbone that beats all others there at ``level``, '' for none.
        ranks: backbone → mean rank over the tasks that all have (1 = best; ties share).
    """

    best: dict[tuple[TaskColumn, str], str]
    ranks: dict[str, float]


def analyse(
    store: Store,
    selection: Selection,
    advance: Callable[[], None] = lambda: None,
) -> Analysis:
    """Read per-image scores, resample them, and compute all numbers of a report.

    Args:
        advance: called once for each backbone of each column.

    Raises:
        TrackingError: an artifact is damaged.
    """
    measured = measure(store, selection, advance)
    judged = judge_differences(selection, measured.samples)
    best = {
        (column, metric): _find_best(judged, measured.samples, column, metric)
        for column in selection.columns
        for metric in shown_metrics(column)
    }
    ranks = _mean_ranks(selection, judged.estimates)
    return Analysis(**vars(measured), **vars(judged), best=best, ranks=ranks)


def _find_best(
    judged: Judgement, samples: Mapping[Key, MetricSample], column: TaskColumn, metric: str
) -> str:
    selection, sign = judged.selection, column.sign(metric)
    names = [name for name in selection.backbones if (name, column, metric) in samples]
    if len(names) < 2:
        return ""
    leader = max(names, key=lambda name: sign * judged.estimates[name, column, metric].value)
    for name in names:
        if name == leader:
            continue
        gap = difference(samples[leader, column, metric], samples[name, column, metric])
        sides = [judged.estimates[each, column, metric] for each in (leader, name)]
        if estimate(gap, judged.seed_prior, sides).at(judged.level).verdict(sign) != "win":
            return ""
    return leader


def _mean_ranks(selection: Selection, estimates: Mapping[Key, Estimate]) -> dict[str, float]:
    names = selection.backbones
    shared = shared_columns(selection, estimates)
    if not shared or len(names) < 2:
        return {}
    values = [[c.sign(c.main) * estimates[name, c, c.main].value for name in names] for c in shared]
    ranks = pd.DataFrame(values, columns=names).rank(axis=1, ascending=False)
    weights = task_weights([column.base for column in shared])
    return dict(zip(names, map(float, weights @ ranks), strict=True))


def shared_columns(selection: Selection, numbers: Mapping[Key, Any]) -> list[TaskColumn]:
    """Columns in which all backbones have a number."""
    return [
        column
        for column in selection.columns
        if all((name, column, column.main) in numbers for name in selection.backbones)
    ]
