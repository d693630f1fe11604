"""Many comparisons at once: the level of each at which one report in twenty has any error.

Max-T (Westfall, Young 1993): the largest of all studentised differences, if all backbones were
equal, from the resamples that the comparisons share, so that tasks on the same images and backbones
with one baseline do not count as independent. The noise of seeds is taken as independent between
comparisons: for any other correlation that is conservative (Šidák 1967), and three seeds cannot
estimate it.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import numpy as np
from scipy import special

from reports.stats.intervals import LEVEL, Estimate

SIMULATED = 5000


def joint_level(
    estimates: Sequence[Estimate],
    deviations: Sequence[np.ndarray | None],
    error_rate: float = LEVEL,
    families: Sequence[int] | None = None,
) -> float:
    """The level of each family at which the probability of any false comparison is ``error_rate``.

    A comparison is judged at that level divided by the size of its family: so a variant of a task
    costs its own task's power, and not that of the others.

    Args:
        deviations: of each, (R,) what resampling the images adds to it; None if unknown.
        families: the size of each comparison's family; default: each is its own.
    """
    sizes = families or [1] * len(estimates)
    judged = [
        (estimate, deviation, size)
        for estimate, deviation, size in zip(estimates, deviations, sizes, strict=True)
        if estimate.variance > 0
    ]
    # what is drawn belongs to a comparison, in whatever order the store has the runs
    judged.sort(key=lambda each: (each[0].value, each[0].variance))
    if len(judged) < 2:
        return error_rate
    width = max((len(deviation) for _, deviation, _ in judged if deviation is not None), default=1)
    standard = np.zeros((len(judged), width), np.float32)
    share = np.zeros((len(judged), 1), np.float32)
    for row, (estimate, deviation, _) in enumerate(judged):
        if deviation is not None and (spread := np.nanstd(deviation)) > 0:
            standard[row] = np.resize(
                np.nan_to_num((deviation - np.nanmean(deviation)) / spread), width
            )
            of_images = sum(part.variance for part in estimate.parts if not part.seeds)
            share[row] = of_images / estimate.variance
    images = standard @ _normal(width) / np.sqrt(width)
    seeds = np.random.default_rng(1).standard_normal((len(judged), SIMULATED), np.float32)
    largest = np.abs(np.sqrt(share) * images + np.sqrt(1 - share) * seeds)
    p_values = 2 * special.ndtr(-largest) * np.array([[size] for _, _, size in judged])
    return float(min(np.quantile(p_values.min(axis=0), error_rate), error_rate))


@functools.lru_cache(maxsize=1)
def _normal(rows: int) -> np.ndarray:
    """(rows, SIMULATED) standard normal."""
    return np.random.default_rng(0).standard_normal((rows, SIMULATED), np.float32)


def sidak(count: int) -> float:
    """The level of each of ``count`` independent comparisons."""
    return 1 - (1 - LEVEL) ** (1 / max(count, 1))
