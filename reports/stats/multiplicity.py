"""Many comparisons at once: the level of each at which all of them err in one report of twenty.

Max-T (Westfall, Young 1993): the largest of all studentised differences, if all backbones were
equal, from the resamples that the comparisons share, so that tasks on the same images and backbones
with one baseline do not count as independent. The noise of seeds is taken as independent between
comparisons: for any other correlation that is conservative (Šidák 1967), and three seeds cannot
estimate it.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy import special

from reports.stats.intervals import LEVEL, Estimate

SIMULATED = 5000


def joint_level(
    estimates: Sequence[Estimate],
    deviations: Sequence[np.ndarray | None],
    error_rate: float = LEVEL,
) -> float:
    """The level of each comparison at which the probability of any false one is ``error_rate``.

    Args:
        deviations: of each, (R,) what resampling the images adds to it; None if unknown.
    """
    judged = [
        (estimate, moved)
        for estimate, moved in zip(estimates, deviations, strict=True)
        if sum(part.variance for part in estimate.parts) > 0
    ]
    if len(judged) < 2:
        return error_rate
    width = max((len(moved) for _, moved in judged if moved is not None), default=1)
    standard = np.zeros((len(judged), width), np.float32)
    share = np.zeros((len(judged), 1), np.float32)
    for row, (estimate, moved) in enumerate(judged):
        if moved is not None and (spread := moved.std()) > 0:
            standard[row] = np.resize((moved - moved.mean()) / spread, width)
            of_images = sum(part.variance for part in estimate.parts if not part.seeds)
            share[row] = of_images / sum(part.variance for part in estimate.parts)
    rng = np.random.default_rng(0)
    images = standard @ rng.standard_normal((width, SIMULATED), np.float32) / np.sqrt(width)
    seeds = rng.standard_normal((len(judged), SIMULATED), np.float32)
    largest = np.abs(np.sqrt(share) * images + np.sqrt(1 - share) * seeds).max(axis=0)
    quantile = np.quantile(largest, 1 - error_rate)
    return float(min(2 * special.ndtr(-quantile), error_rate))


def sidak(count: int) -> float:
    """The level of each of ``count`` independent comparisons."""
    return 1 - (1 - LEVEL) ** (1 / max(count, 1))
