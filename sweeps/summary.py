"""Where a sweep stands, and what it found: which λ is best for which task, and whether that is more than noise."""

from __future__ import annotations

import math
from contextlib import suppress
from dataclasses import dataclass
from statistics import fmean, stdev
from typing import Any

from optuna.trial import FrozenTrial, TrialState

from sweeps.objective import Metrics, task_gains
from sweeps.space import short
from sweeps.study import Sweep, cell_of

ENDED = (TrialState.COMPLETE, TrialState.PRUNED)


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
    done: int
    pruned: int
    running: int
    failures: int
    given_up: dict[str, str]
    seconds: float

    @property
    def left(self) -> int:
        return self.total - self.done - len(self.given_up)

    @property
    def seconds_left(self) -> float:
        """Time until the last cell, at the pace of the finished ones and as many at once as there are now."""
        return self.seconds * self.left / max(1, self.running)


def progress(sweep: Sweep) -> Progress:
    """Count cells, not trials."""
    attempts, driven = sweep.attempts(), sweep.driven
    tried = [attempts.get(cell.key, []) for cell in sweep.space.cells()]
    states = [{trial.state for trial in trials} for trials in tried]
    broken = [trials[-1] for trials, found in zip(tried, states, strict=True) if found == {TrialState.FAIL}]
    spent = [trial.duration.total_seconds() for trial in sweep.trials(*ENDED) if trial.duration]
    return Progress(
        total=len(states),
        done=sum(not found.isdisjoint(ENDED) for found in states),
        pruned=sum(TrialState.PRUNED in found and TrialState.COMPLETE not in found for found in states),
        running=sum(driven and TrialState.RUNNING in found for found in states),
        failures=len(sweep.trials(TrialState.FAIL)),
        given_up={cell_of(trial): str(trial.user_attrs.get("failure", "it failed")) for trial in broken},
        seconds=fmean(spent) if spent else math.nan,
    )


@dataclass(frozen=True)
class Row:
    """One line of the summary; its numbers are NaN where there is none.

    Attributes:
        what, metric: a task and its main metric, or an objective and ''.
        sign: +1 when higher is better, -1 when lower is.
        best: params of the best trial, for people (``base`` when that is all λ = 1); trial: its number.
        value, base, baseline: the best trial's value, the base cell's, clip-ft's.
        noise: standard deviation (n - 1) of the reference cell's value over seeds, of which it takes two or more.
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
    return sweep.trials(TrialState.COMPLETE)


def best_trial(sweep: Sweep, which: int = 0) -> FrozenTrial | None:
    """The trial that is best by objective ``which``; the earlier one when two are equal."""
    sign = sweep.objectives[which].sign
    return max(complete(sweep), key=lambda t: (sign * t.values[which], -t.number), default=None)


def pareto_front(sweep: Sweep) -> list[FrozenTrial]:
    """With several objectives, the trials that no other one beats in every one; with one objective none."""
    several = len(sweep.objectives) > 1
    return sorted(sweep.study.best_trials, key=lambda trial: trial.number) if several else []


def base_trial(sweep: Sweep) -> FrozenTrial | None:
    """The base cell's, where it was tried."""
    return next((trial for trial in complete(sweep) if trial.params == sweep.space.base), None)


def reference(sweep: Sweep) -> FrozenTrial | None:
    """The trial whose noise is measured: the base cell's, else the best."""
    return base_trial(sweep) or best_trial(sweep)


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
    tasks, reached = sweep.tasks, sweep.baseline

    def values_of(metrics: Metrics) -> dict[str, float]:
        found = {task: metrics.get(task, {}).get(facts.main, math.nan) for task, facts in tasks.items()}
        for objective in sweep.objectives:
            with suppress(ValueError):
                found[objective.label] = objective.value(metrics, reached)
        return {what: value for what, value in found.items() if math.isfinite(value)}

    columns = [(objective.label, "", objective.sign) for objective in sweep.objectives]
    columns += [(task, facts.main, facts.sign) for task, facts in tasks.items()]
    trials = {trial.number: trial for trial in complete(sweep)}
    values = {number: values_of(trial.user_attrs.get("metrics", {})) for number, trial in trials.items()}
    base, baseline = base_trial(sweep), values_of(reached)
    seeds = [values_of(metrics) for metrics in noise_values(sweep).values()]
    rows = []
    for what, metric, sign in columns:
        found = {number: value[what] for number, value in values.items() if what in value}
        if not found:
            continue
        best = max(found, key=lambda number: (sign * found[number], -number))
        spread = [value[what] for value in seeds if what in value]
        rows.append(
            Row(
                what, metric, sign, short(trials[best].params, sweep.space.base), found[best],
                found.get(base.number, math.nan) if base else math.nan, baseline.get(what, math.nan),
                stdev(spread) if len(spread) > 1 else math.nan, best,
            )
        )  # fmt: skip
    return rows


def trial_rows(sweep: Sweep) -> list[dict[str, Any]]:
    """Every trial, best first, then those without a value: number, state, params, values, gains by task, links."""
    tasks, baseline = sweep.tasks, sweep.baseline
    front = {trial.number for trial in pareto_front(sweep)}
    best = {trial.number: -sweep.objectives[0].sign * trial.values[0] for trial in complete(sweep)}
    return [
        {
            "number": trial.number,
            "state": trial.state.name,
            "cell": short(trial.params, sweep.space.base) if trial.params else trial.user_attrs.get("cell", ""),
            "params": dict(trial.params),
            "values": list(trial.values) if trial.number in best else [],
            "gains": task_gains(trial.user_attrs.get("metrics", {}), baseline, tasks),
            "seconds": trial.duration.total_seconds() if trial.duration else math.nan,
            "mlflow.run": trial.user_attrs.get("mlflow.run", ""),
            "reason": trial.user_attrs.get("failure", "") if trial.state == TrialState.FAIL else "",
            "pareto": trial.number in front,
        }
        for trial in sorted(sweep.trials(), key=lambda trial: (best.get(trial.number, math.inf), trial.number))
    ]


def best_recipe(sweep: Sweep, trial: FrozenTrial) -> dict[str, Any]:
    """The best trial's settings as a recipe file holds them, so that `train --recipe FILE` trains just that."""
    return {"recipe": "cliptex", **sweep.facts["identity"].get("fixed", {}), **trial.params}
