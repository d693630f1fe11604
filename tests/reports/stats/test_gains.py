"""Gains count the right way round, their mean is not ruled by one task, and equals are improved on
half of the time."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from reports.stats.gains import (
    has_ratio,
    interquartile_mean,
    probability_of_improvement,
    relative_gain,
)
from reports.stats.intervals import Estimate, Part
from reports.stats.resampling import MetricSample


def test_better_is_positive_whichever_way_the_metric_runs():
    assert relative_gain(33.0, 30.0, 1, 1.0) == pytest.approx(10.0)
    assert relative_gain(0.27, 0.30, -1, 1e-6) == pytest.approx(10.0)
    assert relative_gain(33.0, 30.0, -1, 1e-6) == pytest.approx(-10.0), (
        "an angle that grew is a loss"
    )
    assert relative_gain(2.0, 0.0, 1, 1.0) == 200.0, "relative to at least one point"


def test_the_noisiest_task_does_not_rule():
    gains = np.array([4.1, 3.2, 5.0, 4.4, 2.9, -23.1])[:, None]
    assert gains.mean() < 0 < 3 < interquartile_mean(gains)[0]


@pytest.mark.parametrize("count", [1, 2, 3, 4, 7, 8, 12])
def test_the_interquartile_mean_is_scipys_where_quarters_are_whole_and_between_neighbours_elsewhere(
    count,
):
    values = np.random.default_rng(count).normal(0, 1, (count, 5))
    mean = interquartile_mean(values)
    if count % 4 == 0:
        assert mean == pytest.approx(stats.trim_mean(values, 0.25, axis=0))
    dense = np.repeat(values, 4, axis=0)  # each value four times: the quarters are whole
    assert mean == pytest.approx(stats.trim_mean(dense, 0.25, axis=0))


def test_probability_of_improvement_is_mann_whitneys():
    rng = np.random.default_rng(0)
    mine, base = rng.normal(0.5, 1, 7), rng.normal(0, 1, 5)
    expected = stats.mannwhitneyu(mine, base).statistic / 35
    a, b = MetricSample(tuple(range(7)), mine), MetricSample(tuple(range(5)), base)
    assert probability_of_improvement([(a, b, 1)], ["x"]) == pytest.approx(expected)
    assert probability_of_improvement([(a, b, -1)], ["x"]) == pytest.approx(1 - expected)
    assert probability_of_improvement([(a, a, 1), (b, b, -1)], ["x", "y"]) == 0.5


def test_the_shares_of_a_train_set_are_one_task_in_the_probability_of_improvement():
    low, high = MetricSample((0,), np.array([1.0])), MetricSample((0,), np.array([2.0]))
    pairs = [(high, low, 1)] * 3 + [(low, high, 1)]
    assert probability_of_improvement(pairs, ["voc", "voc", "voc", "ade20k"]) == 0.5


def test_what_a_change_can_be_relative_to():
    part = (Part(4.0, 1000),)
    assert has_ratio(Estimate(5, part)) and not has_ratio(Estimate(3, part))
    assert not has_ratio(Estimate(0.0)) and has_ratio(Estimate(3))
