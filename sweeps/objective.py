"""What a sweep optimises: relative gains over a baseline, sign-aware, or any metric of any task."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Literal

from backbones.errors import UserError

Direction = Literal["maximize", "minimize"]
Metrics = Mapping[str, Mapping[str, float]]
# A gain relative to almost nothing says nothing: scores in percent count as at least one point.
LEAST_SCORE = 1.0
LEAST_ERROR = 1e-6
GROUPS = {"gain": "mean gain", "dense": "dense gain", "zero-shot": "zero-shot gain"}  # name → for people


@dataclass(frozen=True)
class ObjectiveTask:
    """What an objective knows of a task.

    Attributes:
        metrics: name → +1 (higher is better) or -1; the main one first.
        group: ``dense`` (segmentation, detection, depth, normals), ``zero-shot`` (what needs the text tower) or ``linear``.
    """

    metrics: Mapping[str, int]
    group: Literal["dense", "zero-shot", "linear"]

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
        tasks: those whose gains are averaged; for a metric the one task.
        metrics, signs: of each of ``tasks``: its metric, and +1 (higher is better) or -1.
    """

    name: str
    direction: Direction
    tasks: Sequence[str]
    metrics: Sequence[str]
    signs: Sequence[int]

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
        return fmean(map(relative_gain, found, self._values(baseline, "the baseline"), self.signs))

    def _values(self, metrics: Metrics, whose: str) -> list[float]:
        values = []
        for task, name in zip(self.tasks, self.metrics, strict=True):
            values.append(metrics.get(task, {}).get(name, math.nan))
            if not math.isfinite(values[-1]):
                raise ValueError(f"{whose} has no value for {task}/{name}; a mean must not leave it out")
        return values


def relative_gain(value: float, base: float, sign: int) -> float:
    """How much better ``value`` is than ``base``, in percent of ``base``: positive is better, whichever way the metric runs.

    For ``sign`` +1 (scores in percent) the base counts as at least one point, for -1 (errors) as at least 1e-6.
    """
    least = LEAST_SCORE if sign > 0 else LEAST_ERROR
    return 100.0 * sign * (value - base) / max(abs(base), least)


def task_gains(metrics: Metrics, baseline: Metrics, tasks: Mapping[str, ObjectiveTask]) -> dict[str, float]:
    """Task → relative gain of its main metric, for those that both have."""
    gains = {}
    for name, task in tasks.items():
        value, base = (side.get(name, {}).get(task.main, math.nan) for side in (metrics, baseline))
        if math.isfinite(value) and math.isfinite(base):
            gains[name] = relative_gain(value, base, task.sign)
    return gains


def make_objectives(names: Sequence[str], tasks: Mapping[str, ObjectiveTask]) -> tuple[Objective, ...]:
    """Objectives by name, over the chosen tasks.

    Raises:
        UserError: an unknown objective, task or metric, or a group without a task.
    """
    made = []
    for name in dict.fromkeys(names or ("gain",)):
        task, _, metric = name.rpartition("/")
        if name in GROUPS:
            parts = [(each, t.main, t.sign) for each, t in tasks.items() if name in ("gain", t.group)]
            if not parts:
                raise UserError(f"--objective {name}: none of the chosen tasks ({', '.join(tasks)}) is of that kind")
        elif task not in tasks:
            told = f"choose {', '.join(GROUPS)} or TASK/METRIC with a task among {', '.join(tasks)}"
            raise UserError(f"--objective {name}: {told}")
        elif metric not in tasks[task].metrics:
            raise UserError(f"--objective {name}: {task} has {', '.join(tasks[task].metrics)}")
        else:
            parts = [(task, metric, tasks[task].metrics[metric])]
        chosen, metrics, signs = map(list, zip(*parts, strict=True))
        direction: Direction = "maximize" if name in GROUPS or signs[0] > 0 else "minimize"
        made.append(Objective(name, direction, chosen, metrics, signs))
    return tuple(made)
