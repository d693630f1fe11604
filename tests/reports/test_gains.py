"""Gains count the right way round, and a sweep's mean is not ruled by one task."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from reports.statistics import interquartile_mean, relative_gain, task_weights


def test_better_is_positive_whichever_way_the_metric_runs():
    assert relative_gain(33.0, 30.0, 1, 1.0) == pytest.approx(10.0)
    assert relative_gain(0.27, 0.30, -1, 1e-6) == pytest.approx(10.0)
    assert relative_gain(2.0, 0.0, 1, 1.0) == 200.0, "relative to at least one point"


@pytest.mark.parametrize("count", [1, 3, 8])
def test_the_interquartile_mean_is_scipys_where_quarters_are_whole(count):
    values = np.random.default_rng(count).normal(0, 1, (count, 5))
    dense = np.repeat(values, 4, axis=0)
    expected = stats.trim_mean(dense, 0.25, axis=0)
    assert interquartile_mean(values) == pytest.approx(expected)


def test_the_variants_of_a_task_count_once():
    assert task_weights(["voc", "voc", "ade20k"]) == pytest.approx([0.25, 0.25, 0.5])
