"""Relative gains and their mean over tasks: one definition for reports and sweeps."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from reports.stats.intervals import Estimate
from reports.stats.resampling import MetricSample


def relative_gain(value: float, base: float, sign: int, floor: float) -> float:
    """How much better ``value`` is than ``base``, in percent of ``base``; positive is better.

    Args:
        sign: +1 where higher is better, else -1.
        floor: the least that the base counts as (``Metric.floor``).
    """
    return 100.0 * sign * (value - base) / max(abs(base), floor)


def interquartile_mean(values: np.ndarray) -> np.ndarray:
    """(n,) the mean of the middle half of T values, (T, n).

    The noisiest task does not dominate it (Agarwal et al., NeurIPS 2021). Values at the quartiles
    count with their share inside, so that three tasks have a mean, too (0.17, 0.67, 0.17).
    """
    count = len(values)
    start = np.arange(count)
    inside = np.minimum(start + 1, 0.75 * count) - np.maximum(start, 0.25 * count)
    return np.clip(inside, 0, None) @ np.sort(values, axis=0) / (count / 2)


def without_noise(values: np.ndarray, variances: np.ndarray) -> np.ndarray:
    """(T,) values shrunk to their mean by as much as noise has spread them.

    Which tasks are in the middle half is chance where noise is most of their spread. Around the
    noisy values, the interquartile mean would seem to vary by up to a third more than it does.
    """
    true = 0.0
    if len(values) > 1:
        true = max(float(np.var(values, ddof=1)) - float(variances.mean()), 0.0)
    share = np.divide(true, true + variances, out=np.ones(len(values)), where=true + variances > 0)
    return values.mean() + np.sqrt(share) * (values - values.mean())


def by_task(tasks: Sequence[str]) -> np.ndarray:
    """(tasks, columns) matrix that averages the columns of one task, so that it counts once."""
    names = list(dict.fromkeys(tasks))
    member = np.array([[task == name for task in tasks] for name in names], float)
    return member / member.sum(axis=1, keepdims=True)


def probability_of_improvement(
    pairs: Sequence[tuple[MetricSample, MetricSample, int]], tasks: Sequence[str]
) -> float:
    """How often a run of ``mine`` is better than one of ``base``, the mean over tasks.

    Ties count half (Agarwal et al. 2021).

    Args:
        pairs: (mine, base, sign) of each column.
        tasks: of each column; the columns of one task count once.
    """
    each = []
    for mine, base, sign in pairs:
        gap = sign * (mine.values[:, None] - base.values[None, :])
        each.append(np.mean((gap > 0) + 0.5 * (gap == 0)))
    return float(np.mean(by_task(tasks) @ each))


def has_ratio(base: Estimate) -> bool:
    """Whether a change relative to ``base`` is meaningful (Fieller's condition).

    Its interval must be on one side of zero.
    """
    if not np.isfinite(base.value) or base.value == 0:
        return False
    return not base.has_interval or abs(base.value) > base.reach
