"""What a sweep optimises: the typical relative gain over a baseline, as reports define it, or any
metric of any task."""

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
}  # name → for people


@dataclass(frozen=True)
class ObjectiveTask:
    """What an objective knows of a task.

    Attributes:
        metrics: name → +1 (higher is better) or -1; the main one first.
        group: ``dense`` (segmentation, detection, depth, normals), ``zero-shot`` (what needs the
            text tower) or ``linear``.
        floor: of the main metric: what the baseline counts as at least (see ``relative_gain``).
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
        tasks: those whose gains are averaged (their interquartile mean); for a metric the one task.
        metrics, signs, floors: of each of ``tasks``: its metric, +1 (higher is better) or -1, and
            what the baseline counts as at least.
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
            ValueError: a metric is missing or not finite: no average may hide that.
        """
        found = self._values(metrics, "the trial")
        if self.name not in GROUPS:
            return found[0]
        gains = map(
            relative_gain, found, self._values(baseline, "the baseline"), self.signs, self.floors
        )
        return float(interquartile_mean(np.array(list(gains))[:, None])[0])

    def _values(self, metrics: Metrics, whose: str) -> list[float]:
        values = []
        for task, name in zip(self.tasks, self.metrics, strict=True):
            values.append(metrics.get(task, {}).get(name, math.nan))
            if not math.isfinite(values[-1]):
                raise ValueError(
                    f"{whose} has no value for {task}/{name}; a mean must not leave it out"
                )
        return values


def task_gains(
    metrics: Metrics, baseline: Metrics, tasks: Mapping[str, ObjectiveTask]
) -> dict[str, float]:
    """Task → relative gain of its main metric, for those that both have."""
    gains = {}
    for name, task in tasks.items():
        value, base = (side.get(name, {}).get(task.main, math.nan) for side in (metrics, baseline))
        if math.isfinite(value) and math.isfinite(base):
            gains[name] = relative_gain(value, base, task.sign, task.floor)
    return gains


def make_objectives(
    names: Sequence[str], tasks: Mapping[str, ObjectiveTask]
) -> tuple[Objective, ...]:
    """Objectives by name, over the chosen tasks; by default ``dense``, or ``gain`` where no task is
    dense.

    Raises:
        UserError: an unknown objective, task or metric, or a group without a task.
    """
    made = []
    default = "dense" if any(task.group == "dense" for task in tasks.values()) else "gain"
    for name in dict.fromkeys(names or (default,)):
        task, _, metric = name.rpartition("/")
        if name in GROUPS:
            parts = [
                (each, t.main, t.sign, t.floor)
                for each, t in tasks.items()
                if name in ("gain", t.group)
            ]
            if not parts:
                raise UserError(
                    f"--objective {name}: none of the chosen tasks ({', '.join(tasks)}) is of that"
                    " kind"
                )
        elif task not in tasks:
            told = f"choose {', '.join(GROUPS)} or TASK/METRIC with a task among {', '.join(tasks)}"
            raise UserError(f"--objective {name}: {told}")
        elif metric not in tasks[task].metrics:
            raise UserError(f"--objective {name}: {task} has {', '.join(tasks[task].metrics)}")
        else:
            parts = [(task, metric, tasks[task].metrics[metric], tasks[task].floor)]
        chosen, metrics, signs, floors = map(list, zip(*parts, strict=True))
        direction: Direction = "maximize" if name in GROUPS or signs[0] > 0 else "minimize"
        made.append(Objective(name, direction, chosen, metrics, signs, floors))
    return tuple(made)
