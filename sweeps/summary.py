"""Where a sweep stands, and what it found: which λ is best for which task, and whether that is more than noise."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from optuna.trial import FrozenTrial, TrialState

from sweeps.objective import Metrics, Objective, TaskFacts, task_gains
from sweeps.space import short
from sweeps.study import Sweep


@dataclass
class Progress:
    """Where a sweep stands, in cells.

    Attributes:
        done: finished, of which ``pruned`` were stopped early.
        running: under way, while there is a driver.
        failures: attempts that broke; given_up: cell → why its last attempt did, where none is queued.
        seconds: mean duration of a finished trial, NaN before the first.
    """

    total: int
    done: int = 0
    pruned: int = 0
    running: int = 0
    failures: int = 0
    given_up: dict[str, str] = field(default_factory=dict)
    seconds: float = math.nan

    @property
    def left(self) -> int:
        return self.total - self.done - len(self.given_up)

    @property
    def seconds_left(self) -> float:
        """Time until the last cell, at the pace of the finished ones and as many at once as there are now."""
        return self.seconds * self.left / max(1, self.running)


def progress(sweep: Sweep) -> Progress:
    """Count cells, not trials."""
    attempts, cells = sweep.attempts(), sweep.space.cells()
    trials = [trial for tried in attempts.values() for trial in tried]
    found = Progress(len(cells), failures=sum(trial.state == TrialState.FAIL for trial in trials))
    driven = sweep.driven
    ended = (TrialState.COMPLETE, TrialState.PRUNED)
    spent = [trial.duration.total_seconds() for trial in trials if trial.state in ended and trial.duration]
    found.seconds = statistics.fmean(spent) if spent else math.nan
    for cell in cells:
        tried = attempts.get(cell.key, [])
        states = {trial.state for trial in tried}
        found.done += bool(states & set(ended))
        found.pruned += TrialState.PRUNED in states and TrialState.COMPLETE not in states
        found.running += driven and TrialState.RUNNING in states
        if states == {TrialState.FAIL}:
            found.given_up[cell.key] = str(tried[-1].user_attrs.get("failure", "it failed"))
    return found


@dataclass(frozen=True)
class Row:
    """One line of the summary.

    Attributes:
        what: a task, or an objective.
        metric: its main metric, '' for an objective.
        sign: +1 when higher is better, -1 when lower is.
        best: params of the best trial, for people (``base`` when that is all λ = 1).
        value, base, baseline: the best trial's value, the base cell's, clip-ft's; NaN where there is none.
        noise: standard deviation of the reference cell's value over seeds; NaN with fewer than two.
        trial: number of the best trial.
    """

    what: str
    metric: str
    sign: int
    best: str
    value: float
    base: float
    baseline: float
    noise: float
    trial: int

    @property
    def clear(self) -> bool:
        """Whether best and base differ by more than twice the noise of a difference (√2 · noise)."""
        return abs(self.value - self.base) > 2 * math.sqrt(2) * self.noise


def complete(sweep: Sweep) -> list[FrozenTrial]:
    """Finished trials with a value, in order."""
    return [trial for trial in sweep.trials() if trial.state == TrialState.COMPLETE]


def best_trial(sweep: Sweep, which: int = 0) -> FrozenTrial | None:
    """The trial that is best by objective ``which``; the earlier one when two are equal."""
    trials = complete(sweep)
    sign = sweep.objectives[which].sign
    return max(trials, key=lambda t: (sign * t.values[which], -t.number), default=None)


def pareto_front(sweep: Sweep) -> list[FrozenTrial]:
    """Trials that no other one beats in every objective."""
    return sorted(sweep.study.best_trials, key=lambda trial: trial.number) if complete(sweep) else []


def reference(sweep: Sweep) -> FrozenTrial | None:
    """The trial whose noise is measured: the base cell where it was tried, else the best."""
    return next((trial for trial in complete(sweep) if trial.params == sweep.space.base), None) or best_trial(sweep)


def noise_values(sweep: Sweep) -> dict[int, Metrics]:
    """Seed → metrics of the reference cell, its own trial's included."""
    trial = reference(sweep)
    if trial is None:
        return {}
    found = {int(sweep.space.seed): trial.user_attrs.get("metrics", {})}
    for key, value in sweep.facts.items():
        if key.startswith("noise.") and value["params"] == trial.params:
            found[int(key.partition(".")[2])] = value["metrics"]
    return dict(sorted(found.items()))


def summary(sweep: Sweep) -> list[Row]:
    """Objectives first, then every task by its main metric; empty while nothing is finished."""
    trials, noise = complete(sweep), noise_values(sweep).values()
    base = next((trial for trial in trials if trial.params == sweep.space.base), None)
    rows = []
    for what, metric, sign, value in _columns(sweep):
        found = {trial.number: value(trial.user_attrs.get("metrics", {})) for trial in trials}
        there = [trial for trial in trials if math.isfinite(found[trial.number])]
        if not there:
            continue
        best = max(there, key=lambda trial: (sign * found[trial.number], -trial.number))
        rows.append(
            Row(
                what, metric, sign, short(best.params, sweep.space.base), found[best.number],
                found[base.number] if base else math.nan, value(sweep.facts.get("baseline", {})),
                _deviation([value(metrics) for metrics in noise]), best.number,
            )
        )  # fmt: skip
    return rows


def _columns(sweep: Sweep) -> Iterator[tuple[str, str, int, Callable[[Metrics], float]]]:
    """What is summed up: name, metric, sign, and its value of a trial's metrics (NaN where some are missing)."""
    baseline = sweep.facts.get("baseline", {})

    def objective_value(objective: Objective, metrics: Metrics) -> float:
        with suppress(ValueError):
            return objective.value(metrics, baseline)
        return math.nan

    for objective in sweep.objectives:
        yield objective.label, "", objective.sign, partial(objective_value, objective)
    for name, facts in _tasks(sweep).items():
        main = facts.main
        yield name, main, facts.metrics[main], lambda found, n=name, m=main: found.get(n, {}).get(m, math.nan)  # type: ignore[misc]


def _tasks(sweep: Sweep) -> dict[str, TaskFacts]:
    return {name: TaskFacts(**facts) for name, facts in sweep.facts.get("tasks", {}).items()}


def _deviation(values: Sequence[float]) -> float:
    """Standard deviation (n - 1) of at least two finite values, else NaN."""
    values = [value for value in values if math.isfinite(value)]
    return statistics.stdev(values) if len(values) > 1 else math.nan


def number(value: float) -> str:
    """For tables; a dash for what there is not."""
    return "–" if math.isnan(value) else f"{value:.3f}" if abs(value) < 10 else f"{value:.1f}"


def trial_rows(sweep: Sweep) -> list[dict[str, Any]]:
    """Every trial, best first, then those without a value: number, state, params, values, gains by task, links."""
    tasks, baseline = _tasks(sweep), sweep.facts.get("baseline", {})
    front = {trial.number for trial in pareto_front(sweep)} if len(sweep.objectives) > 1 else set()
    rows = []
    for trial in sweep.trials():
        rows.append(
            {
                "number": trial.number,
                "state": trial.state.name,
                "cell": short(trial.params, sweep.space.base) if trial.params else trial.user_attrs.get("cell", ""),
                "params": dict(trial.params),
                "values": list(trial.values or []) if trial.state == TrialState.COMPLETE else [],
                "gains": task_gains(trial.user_attrs.get("metrics", {}), baseline, tasks),
                "seconds": trial.duration.total_seconds() if trial.duration else math.nan,
                "mlflow.run": trial.user_attrs.get("mlflow.run", ""),
                "reason": trial.user_attrs.get("failure", "") if trial.state == TrialState.FAIL else "",
                "pareto": trial.number in front,
            }
        )
    sign = sweep.objectives[0].sign
    return sorted(
        rows, key=lambda row: (not row["values"], -sign * row["values"][0] if row["values"] else row["number"])
    )


def best_recipe(sweep: Sweep, trial: FrozenTrial) -> dict[str, Any]:
    """The best trial's settings as a recipe file holds them, so that `train --recipe FILE` trains just that."""
    fixed = dict(sweep.facts["identity"].get("fixed", {}))
    base = fixed.pop("recipe", "cliptex")
    return {"recipe": base, **fixed, **trial.params}
