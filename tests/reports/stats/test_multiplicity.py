"""All comparisons together err as often as one would alone."""

from __future__ import annotations

import numpy as np
import pytest

from reports.stats.intervals import Estimate, Part
from reports.stats.multiplicity import joint_level, sidak


def images(spread: np.ndarray) -> Estimate:
    return Estimate(0.0, (Part(float(spread.var()), 1000),), images=100)


def test_independent_comparisons_are_sidaks_and_the_same_one_ten_times_is_one():
    rng = np.random.default_rng(0)
    apart = list(rng.normal(0, 1, (10, 4000)))
    assert joint_level([images(d) for d in apart], apart) == pytest.approx(sidak(10), rel=0.2)
    same = [apart[0] * scale for scale in range(1, 11)]
    assert joint_level([images(d) for d in same], same) == pytest.approx(0.05, rel=0.1)


def test_correlated_ones_lie_between_and_noise_of_seeds_counts_as_independent():
    rng = np.random.default_rng(1)
    close = list(rng.normal(0, 1, (1, 3000)) * 2 + rng.normal(0, 1, (10, 3000)))
    level = joint_level([images(d) for d in close], close)
    assert sidak(10) * 1.2 < level < 0.05
    mostly = [Estimate(0.0, (Part(1.0, 1000), Part(99.0, 2, 3)), images=100) for _ in close]
    assert joint_level(mostly, close) == pytest.approx(sidak(10), rel=0.2)
    assert joint_level([Estimate(0.0, (Part(1.0, 2, 3),))] * 10, [None] * 10) == pytest.approx(
        sidak(10), rel=0.2
    )


def test_variants_of_a_task_share_its_level():
    """Three variants of one task and two other tasks are three families."""
    rng = np.random.default_rng(3)
    moved = list(rng.normal(0, 1, (5, 4000)))
    judged = [images(each) for each in moved]
    family = joint_level(judged, moved, families=[3, 3, 3, 1, 1])
    assert family == pytest.approx(sidak(3), rel=0.2) and joint_level(judged, moved) < 0.75 * family


def test_what_cannot_err_is_not_counted():
    noise = np.random.default_rng(2).normal(0, 1, 1000)
    assert (
        joint_level(
            [images(noise), Estimate(1.0), Estimate(2.0, (Part(0.0, 5),))], [noise, None, None]
        )
        == 0.05
    )
    assert joint_level([], []) == 0.05
