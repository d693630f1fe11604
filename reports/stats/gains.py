"""Relative gains and their mean over tasks: one definition for reports and sweeps."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from reports.stats.intervals import Estimate
from reports.stats.resampling import Sample


def relative_gain(value: float, base: float, sign: int, floor: float) -> float:
    """How much better ``value`` is than ``base``, in percent of ``base``: positive is better,
    whichever way the metric runs.

    Args:
        sign: +1 where more is better, else -1.
        floor: the base counts as at least that much (``Metric.floor``): relative to almost nothing
            says nothing.
    """
    return 100.0 * sign * (value - base) / max(abs(base), floor)


def interquartile_mean(values: np.ndarray) -> np.ndarray:
    """(n,) the mean of the middle half of T values, (T, n): the noisiest task does not rule it
    (Agarwal et al., NeurIPS 2021).

    The values at the quartiles count with the share of them that is inside, so that three tasks
    have one, too (0.17, 0.67, 0.17).
    """
    count = len(values)
    place = np.arange(count)
    inside = np.minimum(place + 1, 0.75 * count) - np.maximum(place, 0.25 * count)
    return np.clip(inside, 0, None) @ np.sort(values, axis=0) / (count / 2)


def without_noise(values: np.ndarray, variances: np.ndarray) -> np.ndarray:
    """(T,) values drawn together by as much as their noise has driven them apart.

    Which tasks are in the middle half is luck where noise is most of their spread. Looked at around
    the noisy values, the interquartile mean would seem to vary by up to a third more than it does.
    """
    true = (
        max(float(np.var(values, ddof=1)) - float(variances.mean()), 0.0)
        if len(values) > 1
        else 0.0
    )
    kept = np.sqrt(
        np.divide(true, true + variances, out=np.ones(len(values)), where=true + variances > 0)
    )
    return values.mean() + kept * (values - values.mean())


def by_task(tasks: Sequence[str]) -> np.ndarray:
    """(tasks, columns) averages columns of one task: several protocols of it count once."""
    names = list(dict.fromkeys(tasks))
    found = np.array([[task == name for task in tasks] for name in names], float)
    return found / found.sum(axis=1, keepdims=True)


def probability_of_improvement(pairs: Sequence[tuple[Sample, Sample, int]]) -> float:
    """Mean over tasks of how often a run of ``mine`` is better than one of ``base``; ties count
    half (Agarwal et al. 2021).

    Args:
        pairs: (mine, base, sign) of each task.
    """
    each = []
    for mine, base, sign in pairs:
        gap = sign * (mine.values[:, None] - base.values[None, :])
        each.append(np.mean((gap > 0) + 0.5 * (gap == 0)))
    return float(np.mean(each))


def has_ratio(base: Estimate) -> bool:
    """Whether a change relative to ``base`` means anything: its whole interval is on one side of
    zero (Fieller's condition)."""
    if not np.isfinite(base.value) or base.value == 0:
        return False
    return not base.known or abs(base.value) > base.reach
