"""Relative gains and their means over tasks."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def relative_gain(value: float, base: float, sign: int, floor: float) -> float:
    """How much better ``value`` is than ``base``, in percent of ``base``; positive is better.

    Args:
        sign: +1 where higher is better, else -1.
        floor: the least that the base counts as (``Metric.floor``).
    """
    return 100.0 * sign * (value - base) / max(abs(base), floor)


def interquartile_mean(values: np.ndarray) -> np.ndarray:
    """(n,) the mean of the middle half of T values, (T, n): the objective of a sweep, whose single
    trials cannot tell which task is noise (Agarwal et al., NeurIPS 2021).

    Values at the quartiles count with their share inside, so that three tasks have a mean, too
    (0.17, 0.67, 0.17).
    """
    count = len(values)
    start = np.arange(count)
    inside = np.minimum(start + 1, 0.75 * count) - np.maximum(start, 0.25 * count)
    return np.clip(inside, 0, None) @ np.sort(values, axis=0) / (count / 2)


def task_weights(tasks: Sequence[str]) -> np.ndarray:
    """(columns,) weights of a mean over tasks, in which the columns of one task count once."""
    weights = np.array([1 / list(tasks).count(task) for task in tasks])
    return weights / weights.sum()
