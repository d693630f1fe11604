"""The objectives of a sweep: the mean gain over a baseline, as in reports, or any metric."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from common.errors import UserError
from reports.stats.gains import interquartile_mean, relative_gain

Direction = Literal["maximize", "minimize"]
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
    """One number of a trial.

    Attributes:
        name: ``gain``, ``dense``, ``zero-shot``, or ``TASK/METRIC``.
        tasks: the tasks of the mean gain (an interquartile mean), or the task of the metric.
        metrics, signs, floors: of each of ``tasks``: its metric, +1 (higher is better) or -1, and
            the least that the baseline counts as.
    """

    name: str
    direction: Direction
    tasks: Sequence[str]
    metrics: Sequence[str]
    signs: Sequence[int]
    floors: Sequence[float] = ()

    @property
    def sign(self) -> int:
        return 1 if self.direction == "maximize" else -1

    @property
    def label(self) -> str:
        """For axes and tables."""
        return f"{GROUPS[self.name]} over clip-ft (%)" if self.name in GROUPS else self.name

    def value(self, metrics: Metrics, baseline: Metrics) -> float:
        """This objective of a trial's ``metrics`` (task → metric → value) against the baseline's.

        Raises:
            ValueError: a metric is missing or not finite, which a mean must not hide.
        """
        values = self._values(metrics, "the trial")
        if self.name not in GROUPS:
            return values[0]
        bases = self._values(baseline, "the baseline")
        gains = list(map(relative_gain, values, bases, self.signs, self.floors))
        return float(interquartile_mean(np.array(gains)[:, None])[0])

    def _values(self, metrics: Metrics, owner: str) -> list[float]:
        values = []
        for task, name in zip(self.tasks, self.metrics, strict=True):
            value = metrics.get(task, {}).get(name, math.nan)
            if not math.isfinite(value):
                raise ValueError(f"{owner} has no value for {task}/{name}, which the mean needs")
            values.append(value)
        return values


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
    default = "dense" if any(task.group == "dense" for task in tasks.values()) else "gain"
    return tuple(_objective(name, tasks) for name in dict.fromkeys(names or (default,)))


def _objective(name: str, tasks: Mapping[str, ObjectiveTask]) -> Objective:
    if name in GROUPS:
        members = {key: task for key, task in tasks.items() if name in ("gain", task.group)}
        if not members:
            raise UserError(
                f"--objective {name}: none of the selected tasks ({', '.join(tasks)}) is of that"
                " kind"
            )
        return Objective(
            name,
            "maximize",
            list(members),
            [task.main for task in members.values()],
            [task.sign for task in members.values()],
            [task.floor for task in members.values()],
        )
    key, _, metric = name.rpartition("/")
    if key not in tasks:
        raise UserError(
            f"--objective {name}: choose {', '.join(GROUPS)} or TASK/METRIC with a task among"
            f" {', '.join(tasks)}"
        )
    task = tasks[key]
    if metric not in task.metrics:
        raise UserError(f"--objective {name}: {key} has {', '.join(task.metrics)}")
    sign = task.metrics[metric]
    return Objective(name, "maximize" if sign > 0 else "minimize", [key], [metric], [sign])
