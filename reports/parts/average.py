"""A suite's average (``zeroshot38``): the mean of all its tasks' main metrics, of backbones that
have every one of them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from reports.analysis import Analysis
from reports.mlflow.views import MAIN_TAG
from reports.parts.tables import interval, number
from reports.selection import TaskProtocol
from reports.stats.intervals import Estimate, combine
from reports.stats.resampling import Contrast, contrast

TITLE_TAG = "average.title"  # of parent runs whose tasks all have a number


def average_lines(analysis: Analysis) -> list[str]:
    """One for each backbone whose suite has an average, with its interval and, but for the
    baseline, the difference to it."""
    selection, lines = analysis.selection, []
    for name in selection.backbones:
        whole = [
            run for (b, _), run in selection.parents.items() if b == name and TITLE_TAG in run.tags
        ]
        if not whole:
            continue
        tasks = {one.rpartition("/")[0] for one in whole[0].tags[MAIN_TAG].split(",")}
        columns = [
            c
            for c in selection.columns
            if c.task in tasks and (name, c, c.main) in analysis.samples
        ]
        if len(columns) != len(tasks):
            continue  # several protocols of a task, or only some of them were asked for
        found = _mean([Contrast((analysis.samples[name, c, c.main],)) for c in columns])
        text = f"{whole[0].tags[TITLE_TAG]}: {name} {number(found.value, 2)} {_around(found)}"
        base = selection.baseline
        if name != base and all((base, c, c.main) in analysis.samples for c in columns):
            gap = _mean(_gaps(analysis, name, columns))
            text += f"; {number(gap.value, 2, True)} {_around(gap, True)} over {base}"
            text += "" if gap.verdict() in ("win", "loss") else ", undecided"
        lines.append(text)
    return lines


def _gaps(analysis: Analysis, name: str, columns: Sequence[TaskProtocol]) -> list[Contrast]:
    base = analysis.selection.baseline
    return [
        contrast(analysis.samples[name, c, c.main], analysis.samples[base, c, c.main])
        for c in columns
    ]


def _mean(contrasts: Sequence[Contrast]) -> Estimate:
    return combine(contrasts, lambda values: np.mean(values, axis=0))


def _around(found: Estimate, signed: bool = False) -> str:
    return interval(found.low, found.high, 2, signed) or "(no interval)"
