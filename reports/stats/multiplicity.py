"""Many comparisons at once: the level at which each may be judged so that all of them together err
in one report of twenty.

Max-T (Westfall, Young 1993): the largest of all studentised differences, if all backbones were
equal, from the resamples that the comparisons share, so that tasks on the same images, and
backbones compared with one baseline, do not count as if they knew nothing of each other. The noise
of seeds is taken as independent between comparisons: for any other correlation that is on the safe
side (Šidák 1967), and three seeds could not tell it.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy import special

from reports.stats.intervals import LEVEL, Estimate

SIMULATED = 5000


@functools.lru_cache(maxsize=1)
def _normals(width: int) -> tuple[np.ndarray, Any]:
    """(width, SIMULATED) standard normal numbers, always the same, and the generator's state after
    them: a report asks often."""
    rng = np.random.default_rng(0)
    return rng.standard_normal((width, SIMULATED), np.float32), rng.bit_generator.state


def joint_level(
    estimates: Sequence[Estimate], deviations: Sequence[np.ndarray | None], chance: float = LEVEL
) -> float:
    """The level of each comparison at which the chance of any false one among all is ``chance``.

    Args:
        deviations: of each, (R,) what resampling the images adds to it; None where that is not
            known.
    """
    judged = [
        (e, d)
        for e, d in zip(estimates, deviations, strict=True)
        if sum(part.variance for part in e.parts) > 0
    ]
    if len(judged) < 2:
        return chance
    width = max((len(d) for _, d in judged if d is not None), default=1)
    standard, share = (
        np.zeros((len(judged), width), np.float32),
        np.zeros((len(judged), 1), np.float32),
    )
    for place, (found, one) in enumerate(judged):
        if one is not None and (spread := one.std()) > 0:
            standard[place] = np.resize((one - one.mean()) / spread, width)
            share[place] = sum(p.variance for p in found.parts if not p.seeds) / sum(
                p.variance for p in found.parts
            )
    normals, state = _normals(width)
    images = standard @ normals / np.sqrt(width)
    rng = np.random.default_rng()
    rng.bit_generator.state = state
    seeds = rng.standard_normal((len(judged), SIMULATED), np.float32)
    largest = np.abs(np.sqrt(share) * images + np.sqrt(1 - share) * seeds).max(axis=0)
    return float(min(2 * special.ndtr(-np.quantile(largest, 1 - chance)), chance))


def sidak(count: int) -> float:
    """The level of each of ``count`` independent comparisons."""
    return 1 - (1 - LEVEL) ** (1 / max(count, 1))
