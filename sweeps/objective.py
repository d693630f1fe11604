"""The objectives of a sweep: the mean gain over a baseline, as in reports, or any metric."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from cliptex_common.errors import UserError, suggest
from reports.stats.gains import interquartile_mean, relative_gain

Metrics = Mapping[str, Mapping[str, float]]
GROUPS = {
    "gain": "mean gain",
    "dense": "dense gain",
    "zero-shot": "zero-shot gain",
}  # name → label


@dataclass(frozen=True)
class ObjectiveTask:
    """A task of a sweep.

    Attributes:
        metrics: name → +1 (higher is better) or -1; the main one first.
        group: ``dense`` (segmentation, detection, depth, normals), ``zero-shot`` (with text) or
            ``linear``.
        floor: of the main metric: the least that the baseline counts as (see ``relative_gain``).
    """

    metrics: Mapping[str, int]
    group: Literal["dense", "zero-shot", "linear"]
    floor: float = 1.0

    @property
    def main(self) -> str:
        return next(iter(self.metrics))

    @property
    def sign(self) -> int:
        """Of the main metric."""
        return self.metrics[self.main]


@dataclass(frozen=True)
class Objective:
    """One number of a trial: the mean gain of some tasks, or a metric of one task.

    Attributes:
        name: ``gain``, ``dense``, ``zero-shot``, or ``TASK/METRIC``.
        tasks: the tasks of the mean gain (an interquartile mean), or the task of the metric.
        metric: '' for a mean gain.
    """

    name: str
    tasks: Mapping[str, ObjectiveTask]
    metric: str = ""

    @property
    def sign(self) -> int:
        """+1 where higher is better, else -1."""
        (task, *_) = self.tasks.values()
        return task.metrics[self.metric] if self.metric else 1

    @property
    def label(self) -> str:
        """For axes and tables."""
        return self.name if self.metric else f"{GROUPS[self.name]} over clip-ft (%)"

    def value(self, metrics: Metrics, baseline: Metrics) -> float:
        """This objective of a trial's ``metrics`` (task → metric → value) against the baseline's.

        Raises:
            ValueError: a metric is missing or not finite, which a mean must not hide.
        """
        if self.metric:
            (task,) = self.tasks
            value = metrics.get(task, {}).get(self.metric, math.nan)
            missing = [] if math.isfinite(value) else [self.name]
        else:
            gains = task_gains(metrics, baseline, self.tasks)
            missing = [f"{key}/{task.main}" for key, task in self.tasks.items() if key not in gains]
            value = interquartile_mean(np.array([*gains.values()])[:, None])[0] if gains else 0.0
        if missing:
            raise ValueError(f"no value for {', '.join(missing)}")
        return float(value)


def task_gains(
    metrics: Metrics, baseline: Metrics, tasks: Mapping[str, ObjectiveTask]
) -> dict[str, float]:
    """Task → relative gain of its main metric, where both sides have one."""
    gains = {}
    for name, task in tasks.items():
        value, base = (side.get(name, {}).get(task.main, math.nan) for side in (metrics, baseline))
        if math.isfinite(value) and math.isfinite(base):
            gains[name] = relative_gain(value, base, task.sign, task.floor)
    return gains


def make_objectives(
    names: Sequence[str], tasks: Mapping[str, ObjectiveTask]
) -> tuple[Objective, ...]:
    """Objectives by name; by default ``dense``, or ``gain`` without a dense task.

    Raises:
        UserError: an unknown objective, task or metric, or a group without a task.
    """
    choices = {}
    for group in GROUPS:
        members = {key: task for key, task in tasks.items() if group in ("gain", task.group)}
        if members:
            choices[group] = Objective(group, members)
    for key, task in tasks.items():
        for metric in task.metrics:
            choices[f"{key}/{metric}"] = Objective(f"{key}/{metric}", {key: task}, metric)
    names = names or ("dense" if "dense" in choices else "gain",)
    for name in names:
        if name not in choices:
            raise UserError(f"--objective {name}: {suggest(name, choices)}")
    return tuple(choices[name] for name in dict.fromkeys(names))
