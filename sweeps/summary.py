"""Where a sweep stands, and what it found: which λ is best for which task, and whether that was
confirmed on fresh seeds."""

from __future__ import annotations

import math
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from statistics import fmean
from typing import Any

import numpy as np
import pandas as pd
from optuna.trial import FrozenTrial, TrialState
from scipy import stats

from sweeps.objective import Metrics, task_gains
from sweeps.space import Value, short
from sweeps.study import Sweep, cell_of

ENDED = (TrialState.COMPLETE, TrialState.PRUNED)


@dataclass
class Progress:
    """Where a sweep stands, in cells.

    Attributes:
        done: finished, of which ``pruned`` were stopped early.
        running: under way, while there is a driver.
        failures: attempts that broke; given_up: cell → why its last attempt did, where none is
            queued.
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
        """Time until the last cell, at the pace of the finished ones and as many at once as there
        are now."""
        return self.seconds * self.left / max(1, self.running)


def progress(sweep: Sweep) -> Progress:
    """Count cells, not trials."""
    attempts, driven = sweep.attempts(), bool(sweep.driver)
    tried = [attempts.get(cell.key, []) for cell in sweep.space.cells()]
    states = [{trial.state for trial in trials} for trials in tried]
    broken = [
        trials[-1]
        for trials, found in zip(tried, states, strict=True)
        if found == {TrialState.FAIL}
    ]
    spent = [trial.duration.total_seconds() for trial in sweep.trials(*ENDED) if trial.duration]
    return Progress(
        total=len(states),
        done=sum(not found.isdisjoint(ENDED) for found in states),
        pruned=sum(
            TrialState.PRUNED in found and TrialState.COMPLETE not in found for found in states
        ),
        running=sum(driven and TrialState.RUNNING in found for found in states),
        failures=len(sweep.trials(TrialState.FAIL)),
        given_up={
            cell_of(trial): str(trial.user_attrs.get("failure", "it failed")) for trial in broken
        },
        seconds=fmean(spent) if spent else math.nan,
    )


def complete(sweep: Sweep) -> list[FrozenTrial]:
    """Finished trials with a value, in order."""
    return sweep.trials(TrialState.COMPLETE)


def may_be_chosen(sweep: Sweep, trial: FrozenTrial) -> bool:
    """Whether a trial keeps zero-shot, where that is no objective."""
    return sweep.too_much_lost(trial.user_attrs.get("metrics", {})) <= 0


def best_trial(sweep: Sweep) -> FrozenTrial | None:
    """The trial that is best by the first objective of those that keep zero-shot (of all when none
    does); the earlier one when two are equal."""
    sign = sweep.objectives[0].sign
    return max(
        complete(sweep),
        key=lambda t: (may_be_chosen(sweep, t), sign * t.values[0], -t.number),
        default=None,
    )


def pareto_front(sweep: Sweep) -> list[FrozenTrial]:
    """With several objectives, the trials that no other one beats in every one; with one objective
    none."""
    several = len(sweep.objectives) > 1
    return sorted(sweep.study.best_trials, key=lambda trial: trial.number) if several else []


def run_again(sweep: Sweep, params: Mapping[str, Value]) -> dict[int, Metrics]:
    """Fresh seed → metrics of a cell that was run again on it."""
    found = [
        value
        for key, value in sweep.metadata.items()
        if key.startswith("again.") and value["params"] == params
    ]
    return {value["seed"]: value["metrics"] for value in found}


def summary(sweep: Sweep) -> pd.DataFrame:
    """Objectives first, then every task by its main metric, a row each; empty while nothing is
    finished.

    Columns: ``what`` and ``metric`` (a task and its main metric, or an objective and ''), ``sign``
    (+1 when higher is better), ``best`` (params of the best trial, for people), ``trial`` (its
    number), then numbers, NaN where there is none: ``value`` of the best trial, ``base`` of the
    base cell, ``baseline`` of clip-ft, ``confirmed`` (mean difference of winner and base on the
    fresh seeds), ``noise`` (standard deviation of the base cell over all its seeds); and
    ``verdict`` (see ``_verdict``).
    """
    columns = {objective.label: ("", objective.sign) for objective in sweep.objectives}
    columns |= {name: (task.main, task.sign) for name, task in sweep.tasks.items()}

    def values_of(metrics: list[Metrics]) -> pd.DataFrame:
        rows = [
            {name: each.get(name, {}).get(metric) for name, (metric, _) in columns.items()}
            for each in metrics
        ]
        for row, each in zip(rows, metrics, strict=True):
            for objective in sweep.objectives:
                with suppress(ValueError):
                    row[objective.label] = objective.value(each, sweep.baseline)
        return pd.DataFrame(rows, columns=list(columns), dtype=float)

    trials, winner, base = complete(sweep), best_trial(sweep), sweep.space.base
    values = values_of([trial.user_attrs.get("metrics", {}) for trial in trials])
    at_base = values.loc[[trial.params == base for trial in trials]]
    (baseline,) = values_of([sweep.baseline]).to_dict("records")
    mine, theirs = run_again(sweep, winner.params if winner else {}), run_again(sweep, base)
    noise = pd.concat([at_base, values_of(list(theirs.values()))]).std()
    fresh = sorted(mine.keys() & theirs.keys())
    gaps = values_of([mine[seed] for seed in fresh]) - values_of([theirs[seed] for seed in fresh])
    signs = pd.Series({what: sign for what, (_, sign) in columns.items()})
    allowed = values.copy()
    kept = [may_be_chosen(sweep, trial) for trial in trials]
    if any(kept):
        allowed.loc[~np.array(kept), [objective.label for objective in sweep.objectives]] = np.nan
    best: Any = (
        (allowed * signs).dropna(axis=1, how="all").idxmax()
    )  # the earlier one when two are equal
    rows = []
    for what, number in best.items():
        trial, (metric, sign) = trials[number], columns[what]
        won = winner is not None and trial.number == winner.number
        gap = gaps[what].dropna().to_numpy() if won else np.empty(0)
        others = max(1, len(trials) - 1) * (len(sweep.tasks) if metric else 1)
        rows.append(
            {
                "what": what,
                "metric": metric,
                "sign": sign,
                "trial": trial.number,
                "best": short(trial.params, base),
                "value": values[what][number],
                "base": at_base[what].mean(),
                "baseline": baseline[what],
                "confirmed": gap.mean() if gap.size else math.nan,
                "noise": noise[what],
                "verdict": "" if trial.params == base else _verdict(sign * gap, others),
            }
        )
    return pd.DataFrame(rows)


def _verdict(gaps: np.ndarray, compared: int) -> str:
    """``clear`` where the best cell beats the base cell on fresh seeds, else ``within noise``;
    ``not confirmed`` without those.

    Student's paired t at 5 %, divided by the number of comparisons: the best of many is also the
    luckiest on these images.

    Args:
        gaps: (S,) how much better it is with each fresh seed.
    """
    if len(gaps) < 2:
        return "not confirmed"
    reach = stats.t.isf(0.025 / compared, len(gaps) - 1) * gaps.std(ddof=1) / math.sqrt(len(gaps))
    return "clear" if gaps.mean() > reach else "within noise"


def trial_table(sweep: Sweep) -> pd.DataFrame:
    """Every trial, best first, then those without a value: its number, λs, objectives, gains of
    tasks in percent, and state."""
    front = {trial.number for trial in pareto_front(sweep)}
    best = {trial.number: -sweep.objectives[0].sign * trial.values[0] for trial in complete(sweep)}
    rows = []
    for trial in sorted(
        sweep.trials(), key=lambda trial: (best.get(trial.number, math.inf), trial.number)
    ):
        cell = (
            short(trial.params, sweep.space.base)
            if trial.params
            else trial.user_attrs.get("cell", "")
        )
        values = trial.values if trial.number in best else [math.nan] * len(sweep.objectives)
        state = trial.state.name.lower() + (" ◆ Pareto" if trial.number in front else "")
        state += (
            " (loses zero-shot)" if trial.number in best and not may_be_chosen(sweep, trial) else ""
        )
        if trial.state == TrialState.FAIL:
            state += f": {trial.user_attrs.get('failure', '')}"
        gains = task_gains(trial.user_attrs.get("metrics", {}), sweep.baseline, sweep.tasks)
        names = [objective.label for objective in sweep.objectives]
        rows.append(
            {
                "trial": trial.number,
                "λ": cell,
                **dict(zip(names, values, strict=True)),
                **gains,
                "state": state,
            }
        )
    columns = [
        "trial",
        "λ",
        *(objective.label for objective in sweep.objectives),
        *sweep.tasks,
        "state",
    ]
    return pd.DataFrame(rows, columns=columns)


def best_recipe(sweep: Sweep, trial: FrozenTrial) -> dict[str, Any]:
    """The best trial's settings as a recipe file holds them, so that `train --recipe FILE` trains
    just that."""
    return {"recipe": "cliptex", **sweep.metadata["identity"].get("fixed", {}), **trial.params}
