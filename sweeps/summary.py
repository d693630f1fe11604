"""The state of a sweep and its result: the best λ for each task, and its confirmation."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from statistics import fmean
from typing import Any

import numpy as np
import pandas as pd
from optuna.trial import FrozenTrial, TrialState
from scipy import stats

from reports.stats.seeds import NO_PRIOR, SeedNoise, SeedPrior, seed_prior
from sweeps.objective import Metrics, task_gains
from sweeps.space import Value, short
from sweeps.study import Sweep

FINISHED = {TrialState.COMPLETE, TrialState.PRUNED}


@dataclass
class Progress:
    """The state of a sweep, in cells.

    Attributes:
        done: finished, of which ``pruned`` were stopped early.
        pending: neither finished nor given up; ``running``: of these, while there is a driver.
        failures: failed attempts.
        given_up: cell → error of its last attempt, where none is queued.
        seconds: mean duration of a finished trial; None before the first.
        seconds_left: until the last cell, at the current pace.
    """

    total: int
    done: int
    pruned: int
    pending: int
    running: int
    failures: int
    given_up: dict[str, str]
    seconds: float | None
    seconds_left: float | None


def progress(sweep: Sweep) -> Progress:
    """Count cells, not trials."""
    attempts, driven = sweep.attempts(), bool(sweep.driver)
    states = {cell: {trial.state for trial in trials} for cell, trials in attempts.items()}
    given_up = {
        cell: attempts[cell][-1].user_attrs.get("failure", "failed")
        for cell, each in states.items()
        if each == {TrialState.FAIL}
    }
    done = sum(bool(each & FINISHED) for each in states.values())
    pending = len(states) - done - len(given_up)
    running = sum(driven and TrialState.RUNNING in each for each in states.values())
    durations = [trial.duration for trial in sweep.trials(*FINISHED)]
    seconds = [duration.total_seconds() for duration in durations if duration]
    mean = fmean(seconds) if seconds else None
    return Progress(
        total=len(states),
        done=done,
        pruned=sum(each & FINISHED == {TrialState.PRUNED} for each in states.values()),
        pending=pending,
        running=running,
        failures=len(sweep.trials(TrialState.FAIL)),
        given_up=given_up,
        seconds=mean,
        seconds_left=mean and mean * pending / max(1, running),
    )


def complete(sweep: Sweep) -> list[FrozenTrial]:
    """Finished trials with a value, in order."""
    return sweep.trials(TrialState.COMPLETE)


def is_allowed(sweep: Sweep, trial: FrozenTrial) -> bool:
    """Whether a trial retains zero-shot, where that is not an objective."""
    return sweep.zero_shot_excess(_metrics(trial)) <= 0


def _metrics(trial: FrozenTrial) -> Metrics:
    return trial.user_attrs.get("metrics", {})


def best_trial(sweep: Sweep) -> FrozenTrial | None:
    """The best trial by the first objective, the earlier one of equal ones.

    An allowed trial beats all others.
    """
    sign = sweep.objectives[0].sign
    return max(
        complete(sweep),
        key=lambda trial: (is_allowed(sweep, trial), sign * trial.values[0], -trial.number),
        default=None,
    )


def pareto_front(sweep: Sweep) -> list[FrozenTrial]:
    """The Pareto front of several objectives; empty for one objective."""
    several = len(sweep.objectives) > 1
    return sorted(sweep.study.best_trials, key=lambda trial: trial.number) if several else []


def run_again(sweep: Sweep, params: Mapping[str, Value]) -> dict[int, Metrics]:
    """Fresh seed → metrics of a cell that was run again on it."""
    return {
        value["seed"]: value["metrics"]
        for key, value in sweep.metadata.items()
        if key.startswith("again.") and value["params"] == params
    }


def summary(sweep: Sweep) -> pd.DataFrame:
    """A row for each objective and each task's main metric; empty while nothing is finished.

    Columns: ``what`` and ``metric`` (a task and its main metric, or an objective and ''), ``sign``
    (+1 where higher is better), ``best`` (params of the best trial, for people), ``trial`` (its
    number), then numbers, NaN if unknown: ``value`` of the best trial, ``base`` of the base cell,
    ``baseline`` of clip-ft, ``confirmed`` (mean difference of winner and base on the fresh seeds),
    ``noise`` (standard deviation of the base cell over all its seeds); and ``verdict`` (see
    ``_verdict``).
    """
    trials, winner, base = complete(sweep), best_trial(sweep), sweep.space.base
    if winner is None:
        return pd.DataFrame()
    columns = {objective.label: ("", objective.sign) for objective in sweep.objectives}
    columns |= {name: (task.main, task.sign) for name, task in sweep.tasks.items()}
    values = _table(sweep, map(_metrics, trials))
    at_base = values.loc[[trial.params == base for trial in trials]]
    baseline = _table(sweep, [sweep.baseline]).iloc[0]
    won, reference = run_again(sweep, winner.params), run_again(sweep, base)
    noise = pd.concat([at_base, _table(sweep, reference.values())]).std()
    fresh = sorted(won.keys() & reference.keys())
    winners, bases = (_table(sweep, map(runs.get, fresh)) for runs in (won, reference))
    gaps = winners - bases
    scales = {name: max(abs(baseline[name]), task.floor) ** 2 for name, task in sweep.tasks.items()}
    prior = seed_prior(
        [noise for table in (winners, bases) for noise in _seed_noise(table, scales)],
        _seed_noise(gaps, scales),
    )
    candidates = values.copy()
    allowed = np.array([is_allowed(sweep, trial) for trial in trials])
    if allowed.any():
        candidates.loc[~allowed, [objective.label for objective in sweep.objectives]] = np.nan
    rows = []
    for subject, (metric, sign) in columns.items():
        if candidates[subject].isna().all():
            continue
        index: Any = (sign * candidates[subject]).idxmax()
        trial = trials[index]
        gap = gaps[subject].dropna().to_numpy() if trial.number == winner.number else np.empty(0)
        comparisons = max(1, len(trials) - 1) * (len(sweep.tasks) if metric else 1)
        verdict = _verdict(sign * gap, comparisons, prior, scales.get(subject, 0.0))
        rows.append(
            {
                "what": subject,
                "metric": metric,
                "sign": sign,
                "trial": trial.number,
                "best": short(trial.params, base),
                "value": values[subject][index],
                "base": at_base[subject].mean(),
                "baseline": baseline[subject],
                "confirmed": gap.mean() if gap.size else math.nan,
                "noise": noise[subject],
                "verdict": "" if trial.params == base else verdict,
            }
        )
    return pd.DataFrame(rows)


def _table(sweep: Sweep, every: Iterable[Any]) -> pd.DataFrame:
    """Objectives and main metrics of each of ``every`` metrics, a row each; NaN if missing."""
    rows = []
    for metrics in every:
        row = {name: metrics.get(name, {}).get(task.main) for name, task in sweep.tasks.items()}
        for objective in sweep.objectives:
            with suppress(ValueError):
                row[objective.label] = objective.value(metrics, sweep.baseline)
        rows.append(row)
    labels = [objective.label for objective in sweep.objectives]
    return pd.DataFrame(rows, columns=[*labels, *sweep.tasks], dtype=float)


def _seed_noise(table: pd.DataFrame, scales: Mapping[str, float]) -> list[SeedNoise]:
    """How each task varies over the seeds (the rows), in units of the baseline's number."""
    seeds = tuple(range(len(table)))
    return [
        SeedNoise(seeds, table[name].to_numpy(), scale)
        for name, scale in scales.items()
        if table[name].notna().all()
    ]


def _verdict(
    gaps: np.ndarray, comparisons: int, prior: SeedPrior = NO_PRIOR, scale: float = 0.0
) -> str:
    """``clear`` if the best cell beats the base cell on fresh seeds, else ``within noise``.

    ``not confirmed`` with fewer than two seeds. Student's paired t at 5 % with Bonferroni's
    correction: the best of many is also the luckiest on these images. The variance of a task's gap
    is moderated by that of the others (see ``reports.stats.seeds``).

    Args:
        gaps: (S,) how much better it is with each fresh seed.
        scale: what the prior's ratio is relative to; 0 for what has no prior.
    """
    if len(gaps) < 2:
        return "not confirmed"
    variance, df = float(gaps.var(ddof=1)), float(len(gaps) - 1)
    if scale > 0:
        variance, df = prior.moderate(variance, df, scale)
    reach = stats.t.isf(0.025 / comparisons, df) * math.sqrt(variance / len(gaps))
    return "clear" if gaps.mean() > reach else "within noise"


def trial_table(sweep: Sweep) -> pd.DataFrame:
    """Every trial, best first, then those without a value.

    Columns: trial, λ, objectives, gains of tasks in percent, state.
    """
    front = {trial.number for trial in pareto_front(sweep)}
    finished = complete(sweep)
    sign = sweep.objectives[0].sign
    ranked = sorted(finished, key=lambda trial: (-sign * trial.values[0], trial.number))
    unfinished = [trial for trial in sweep.trials() if trial.state != TrialState.COMPLETE]
    labels = [objective.label for objective in sweep.objectives]
    rows = []
    for trial in [*ranked, *unfinished]:
        state = trial.state.name.lower()
        values: Sequence[float] = [math.nan] * len(labels)
        if trial.state == TrialState.COMPLETE:
            values = trial.values
            state += " ◆ Pareto" if trial.number in front else ""
            state += "" if is_allowed(sweep, trial) else " (loses zero-shot)"
        elif trial.state == TrialState.FAIL:
            state += f": {trial.user_attrs.get('failure', '')}"
        rows.append(
            {
                "trial": trial.number,
                "λ": short(trial.params, sweep.space.base)
                if trial.params
                else trial.user_attrs.get("cell", ""),
                **dict(zip(labels, values, strict=True)),
                **task_gains(_metrics(trial), sweep.baseline, sweep.tasks),
                "state": state,
            }
        )
    return pd.DataFrame(rows, columns=["trial", "λ", *labels, *sweep.tasks, "state"])


def best_recipe(sweep: Sweep, trial: FrozenTrial) -> dict[str, Any]:
    """The best trial's settings as a recipe file, for ``train --recipe FILE``."""
    return {"recipe": "cliptex", **sweep.metadata["identity"].get("fixed", {}), **trial.params}
