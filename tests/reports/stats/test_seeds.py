"""A seed variance borrows from others as far as they are alike, and no further."""

from __future__ import annotations

import numpy as np
import pytest

from reports.stats.seeds import NO_PRIOR, SeedNoise, seed_prior, shared_noise


def noises(values: np.ndarray) -> list[SeedNoise]:
    """``values`` (subjects, S), in units of their scale."""
    return [SeedNoise(tuple(range(len(each))), each, 1.0) for each in values]


def prior_of(values: np.ndarray):
    return seed_prior(noises(values), noises(values))


def test_a_population_of_variances_is_recovered():
    """Scaled inverse χ² with 6 degrees of freedom, as Smyth's model has it."""
    rng = np.random.default_rng(0)
    variances = 3.0 * 6 / rng.chisquare(6, 1500)
    prior = prior_of(rng.normal(0, 1, (1500, 4)) * np.sqrt(variances)[:, None])
    assert prior.df == pytest.approx(6, rel=0.25) and prior.ratio == pytest.approx(3, rel=0.1)
    variance, df = prior.moderate(9.0, 3.0, 2.0)
    assert df == prior.df + 3
    assert variance == pytest.approx((prior.df * prior.ratio * 2 + 3 * 9) / df)


def test_equal_variances_tell_as_much_as_all_others_together():
    values = np.random.default_rng(1).normal(0, 2, (300, 3))
    prior = prior_of(values)
    assert 15 < prior.df <= 2 * 299 and prior.ratio == pytest.approx(4, rel=0.2)


def test_unlike_variances_tell_little():
    rng = np.random.default_rng(2)
    spread = 10 ** rng.uniform(-1, 1, (200, 1))  # four orders of magnitude of the variance
    assert prior_of(rng.normal(0, 1, (200, 3)) * spread).df < 1


def test_noise_that_moves_all_tasks_counts_once():
    rng = np.random.default_rng(3)
    same = rng.normal(0, 1, (1, 3)) * rng.uniform(0.9, 1.1, (7, 1))
    assert shared_noise(noises(same)) == pytest.approx(1) and prior_of(same) == NO_PRIOR
    independent = [shared_noise(noises(rng.normal(0, 1, (7, 3)))) for _ in range(200)]
    assert np.mean(independent) < 0.1


def test_a_noisy_baseline_does_not_make_differences_alike():
    rng = np.random.default_rng(4)
    base = rng.normal(0, 30, (7, 1, 3))
    others = rng.normal(0, 1, (7, 9, 3))
    gaps = noises((others - base).reshape(-1, 3))
    cells = noises(np.concatenate([base, others], axis=1).reshape(-1, 3))
    assert seed_prior(cells, gaps).df < 2 < seed_prior(gaps, gaps).df


def test_two_seeds_or_two_subjects_tell_nothing():
    rng = np.random.default_rng(5)
    assert prior_of(rng.normal(0, 1, (50, 2))) == NO_PRIOR
    assert prior_of(rng.normal(0, 1, (2, 5))) == NO_PRIOR
    assert prior_of(np.zeros((9, 3))) == NO_PRIOR
