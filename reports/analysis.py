"""From the selected runs to numbers with intervals, which all parts of a report are made of."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from reports.judgement import Judgement, judge_differences
from reports.measurements import Key, Measurements, measure, shown_metrics
from reports.mlflow.query import Store
from reports.selection import Selection, TaskColumn
from reports.stats.intervals import estimate
from reports.stats.resampling import MetricSample, difference


@dataclass(frozen=True)
class Analysis(Judgement, Measurements):
    """All numbers of a report.

    Attributes:
        best: (column, metric) → the backbone that beats all others there, '' for none: the baseline
            at the level of their difference, others at ``level``.
    """

    best: dict[tuple[TaskColumn, str], str]


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
    return Analysis(**vars(measured), **vars(judged), best=best)


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
        first, *others = {name, leader} - {selection.baseline}
        level = judged.level if others else judged.differences[first, column, metric].level
        gap = difference(samples[leader, column, metric], samples[name, column, metric])
        gap_estimate = estimate(gap, judged.seed_prior, column.metric(metric).width)
        if replace(gap_estimate, level=level).verdict(sign) != "win":
            return ""
    return leader


def shared_columns(selection: Selection, numbers: Mapping[Key, Any]) -> list[TaskColumn]:
    """Columns in which all backbones have a number."""
    return [
        column
        for column in selection.columns
        if all((name, column, column.main) in numbers for name in selection.backbones)
    ]
