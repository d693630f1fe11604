"""A suite's average (``zeroshot38``): the mean of the main metrics of all its tasks."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from reports.analysis import Analysis
from reports.parts.figures import describe
from reports.stats.intervals import Estimate, combine
from reports.stats.resampling import Contrast, contrast


def average_lines(analysis: Analysis) -> list[str]:
    """The average of each backbone whose suite has one, and its difference to the baseline."""
    selection, lines = analysis.selection, []
    base = selection.baseline
    for name in selection.backbones:
        complete = [
            run
            for (backbone, _), run in selection.parents.items()
            if backbone == name and run.average
        ]
        if not complete:
            continue
        tasks = {task.rpartition("/")[0] for task in complete[0].main_metrics}
        samples = {
            c: analysis.samples[name, c, c.main]
            for c in selection.columns
            if c.task in tasks and (name, c, c.main) in analysis.samples
        }
        if len(samples) != len(tasks):
            continue  # several protocols of a task, or some tasks were not selected
        average = _mean([Contrast((sample,)) for sample in samples.values()])
        text = f"{complete[0].average}: {name} {describe(average, 2)}"
        if name != base and all((base, c, c.main) in analysis.samples for c in samples):
            gap = _mean(
                [contrast(own, analysis.samples[base, c, c.main]) for c, own in samples.items()]
            )
            decided = "" if gap.verdict() in ("win", "loss") else ", undecided"
            text += f"; {describe(gap, 2, True)} over {base}{decided}"
        lines.append(text)
    return lines


def _mean(contrasts: Sequence[Contrast]) -> Estimate:
    return combine(contrasts, lambda values: np.mean(values, axis=0))
