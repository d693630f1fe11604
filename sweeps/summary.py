"""Where a sweep stands, and what it found: which λ is best for which task, and whether that is more than noise."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from statistics import fmean
from typing import Any

import pandas as pd
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
    attempts, driven = sweep.attempts(), bool(sweep.driver)
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


def complete(sweep: Sweep) -> list[FrozenTrial]:
    """Finished trials with a value, in order."""
    return sweep.trials(TrialState.COMPLETE)


def best_trial(sweep: Sweep) -> FrozenTrial | None:
    """The trial that is best by the first objective; the earlier one when two are equal."""
    sign = sweep.objectives[0].sign
    return max(complete(sweep), key=lambda t: (sign * t.values[0], -t.number), default=None)


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
    for key, value in sweep.metadata.items():
        if key.startswith("noise.") and value["params"] == trial.params:
            found[int(key.partition(".")[2])] = value["metrics"]
    return dict(sorted(found.items()))


def summary(sweep: Sweep) -> pd.DataFrame:
    """Objectives first, then every task by its main metric, a row each; empty while nothing is finished.

    Columns: ``what`` and ``metric`` (a task and its main metric, or an objective and ''), ``sign`` (+1 when higher is better),
    ``best`` (params of the best trial, for people), ``trial`` (its number), then numbers, NaN where there is none: ``value`` of
    the best trial, ``base`` of the base cell, ``baseline`` of clip-ft, ``noise`` (standard deviation of the reference
    cell's value over seeds).
    """
    columns = {objective.label: ("", objective.sign) for objective in sweep.objectives}
    columns |= {name: (task.main, task.sign) for name, task in sweep.tasks.items()}

    def values_of(metrics: Sequence[Metrics]) -> pd.DataFrame:
        rows = [{name: each.get(name, {}).get(metric) for name, (metric, _) in columns.items()} for each in metrics]
        for row, each in zip(rows, metrics, strict=True):
            for objective in sweep.objectives:
                with suppress(ValueError):
                    row[objective.label] = objective.value(each, sweep.baseline)
        return pd.DataFrame(rows, columns=list(columns), dtype=float)

    trials = complete(sweep)
    values = values_of([trial.user_attrs.get("metrics", {}) for trial in trials])
    base = values.loc[[trial.params == sweep.space.base for trial in trials]].mean()
    baseline, noise = values_of([sweep.baseline]).iloc[0], values_of(list(noise_values(sweep).values())).std()
    signs = pd.Series({what: sign for what, (_, sign) in columns.items()})
    best: Any = (values * signs).dropna(axis=1, how="all").idxmax()  # the earlier one when two are equal
    rows = [
        {
            "what": what, "metric": columns[what][0], "sign": columns[what][1], "trial": trials[number].number,
            "best": short(trials[number].params, sweep.space.base), "value": values[what][number], "base": base[what],
            "baseline": baseline[what], "noise": noise[what],
        }
        for what, number in best.items()
    ]  # fmt: skip
    return pd.DataFrame(rows)


def verdict(row: Mapping[str, Any]) -> str:
    """Whether best and base of a row of ``summary`` differ by more than twice the noise of a difference (√2 · noise)."""
    if math.isnan(row["noise"]) or math.isnan(row["base"]) or row["value"] == row["base"]:
        return ""
    return "clear" if abs(row["value"] - row["base"]) > 2 * math.sqrt(2) * row["noise"] else "within noise"


def trial_table(sweep: Sweep) -> pd.DataFrame:
    """Every trial, best first, then those without a value: its number, λs, objectives, gains of tasks in percent, and state."""
    front = {trial.number for trial in pareto_front(sweep)}
    best = {trial.number: -sweep.objectives[0].sign * trial.values[0] for trial in complete(sweep)}
    rows = []
    for trial in sorted(sweep.trials(), key=lambda trial: (best.get(trial.number, math.inf), trial.number)):
        cell = short(trial.params, sweep.space.base) if trial.params else trial.user_attrs.get("cell", "")
        values = trial.values if trial.number in best else [math.nan] * len(sweep.objectives)
        state = trial.state.name.lower() + (" ◆ Pareto" if trial.number in front else "")
        if trial.state == TrialState.FAIL:
            state += f": {trial.user_attrs.get('failure', '')}"
        gains = task_gains(trial.user_attrs.get("metrics", {}), sweep.baseline, sweep.tasks)
        names = [objective.label for objective in sweep.objectives]
        rows.append(
            {"trial": trial.number, "λ": cell, **dict(zip(names, values, strict=True)), **gains, "state": state}
        )
    columns = ["trial", "λ", *(objective.label for objective in sweep.objectives), *sweep.tasks, "state"]
    return pd.DataFrame(rows, columns=columns)


def best_recipe(sweep: Sweep, trial: FrozenTrial) -> dict[str, Any]:
    """The best trial's settings as a recipe file holds them, so that `train --recipe FILE` trains just that."""
    return {"recipe": "cliptex", **sweep.metadata["identity"].get("fixed", {}), **trial.params}
