"""Where a sweep stands, and what it found: which λ is best for which task, and whether that is more than noise."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from optuna.trial import FrozenTrial, TrialState

from sweeps.objective import TaskFacts, task_gains
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
    sign = 1 if sweep.directions[which] == "maximize" else -1
    return max(trials, key=lambda t: (sign * t.values[which], -t.number), default=None)


def pareto_front(sweep: Sweep) -> list[FrozenTrial]:
    """Trials that no other one beats in every objective."""
    return sorted(sweep.study.best_trials, key=lambda trial: trial.number) if complete(sweep) else []


def reference(sweep: Sweep) -> FrozenTrial | None:
    """The trial whose noise is measured: the base cell where it was tried, else the best."""
    return next((trial for trial in complete(sweep) if trial.params == sweep.space.base), None) or best_trial(sweep)


def noise_values(sweep: Sweep) -> dict[int, Mapping[str, Mapping[str, float]]]:
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
    trials = complete(sweep)
    if not trials:
        return []
    tasks = {name: TaskFacts(**facts) for name, facts in sweep.facts.get("tasks", {}).items()}
    baseline = sweep.facts.get("baseline", {})
    noise = noise_values(sweep)
    base = next((trial for trial in trials if trial.params == sweep.space.base), None)
    rows = []
    for number, objective in enumerate(sweep.objectives):
        best = best_trial(sweep, number)
        assert best is not None
        seeds = [objective.value(metrics, baseline) for metrics in noise.values() if metrics]
        rows.append(
            Row(
                objective.label, "", 1 if objective.direction == "maximize" else -1, short(best.params, sweep.space.base),
                best.values[number], base.values[number] if base else math.nan, 0.0 if objective.is_gain else math.nan,
                _deviation(seeds), best.number,
            )
        )  # fmt: skip
    for name, facts in tasks.items():
        sign = facts.metrics[facts.main]

        def value(trial: FrozenTrial, name: str = name, main: str = facts.main) -> float:
            return trial.user_attrs.get("metrics", {}).get(name, {}).get(main, math.nan)

        there = [trial for trial in trials if math.isfinite(value(trial))]
        if not there:
            continue
        best = max(there, key=lambda trial: (sign * value(trial), -trial.number))
        seeds = [metrics.get(name, {}).get(facts.main, math.nan) for metrics in noise.values()]
        rows.append(
            Row(
                name, facts.main, sign, short(best.params, sweep.space.base), value(best),
                value(base) if base else math.nan, baseline.get(name, {}).get(facts.main, math.nan),
                _deviation(seeds), best.number,
            )
        )  # fmt: skip
    return rows


def _deviation(values: Sequence[float]) -> float:
    """Standard deviation (n - 1) of at least two finite values, else NaN."""
    values = [value for value in values if math.isfinite(value)]
    return statistics.stdev(values) if len(values) > 1 else math.nan


def number(value: float) -> str:
    """For tables; a dash for what there is not."""
    return "–" if math.isnan(value) else f"{value:.3f}" if abs(value) < 10 else f"{value:.1f}"


def trial_rows(sweep: Sweep) -> list[dict[str, Any]]:
    """Every trial, best first, then those without a value: number, state, params, values, gains by task, links."""
    tasks = {name: TaskFacts(**facts) for name, facts in sweep.facts.get("tasks", {}).items()}
    baseline = sweep.facts.get("baseline", {})
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
    sign = 1 if sweep.directions[0] == "maximize" else -1
    return sorted(
        rows, key=lambda row: (not row["values"], -sign * row["values"][0] if row["values"] else row["number"])
    )


def best_recipe(sweep: Sweep, trial: FrozenTrial) -> dict[str, Any]:
    """The best trial's settings as a recipe file holds them, so that `train --recipe FILE` trains just that."""
    fixed = dict(sweep.facts["identity"].get("fixed", {}))
    base = fixed.pop("recipe", "cliptex")
    return {"recipe": base, **fixed, **trial.params}
