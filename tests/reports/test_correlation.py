"""Spearman's ρ and its interval."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from reports.statistics import spearman


def test_rho_is_scipys():
    rng = np.random.default_rng(0)
    x = pd.Series(rng.integers(0, 9, 30))
    y = (x + pd.Series(rng.normal(0, 3, 30))).where(lambda each: each.index > 0)
    rho, low, high = spearman(x, y)
    assert rho == pytest.approx(stats.spearmanr(x[1:], y[1:]).statistic)
    assert low < rho < high


@pytest.mark.parametrize("noise", [0.5, 2.0])
def test_its_interval_covers(noise):
    rng = np.random.default_rng(1)
    x = rng.normal(size=(4000,))
    true = stats.spearmanr(x, x + noise * rng.normal(size=4000)).statistic
    hits = 0
    for _ in range(300):
        x = rng.normal(size=15)
        _, low, high = spearman(pd.Series(x), pd.Series(x + noise * rng.normal(size=15)))
        hits += low <= true <= high
    assert 0.9 <= hits / 300 <= 0.99


@pytest.mark.parametrize("values", [[1, 2, 3, 4], [1] * 9], ids=["few", "constant"])
def test_there_is_none(values):
    assert np.isnan(spearman(pd.Series(values), pd.Series(range(len(values))))).all()
