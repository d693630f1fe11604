"""Intervals over seeds and images: each noise counts once, pairing pairs, and nothing is decided
without cause."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from scipy import stats

from reports.statistics import (
    Estimate,
    MetricSample,
    difference,
    estimate,
    image_weights,
    judge_jointly,
    weighted_sum,
)


def sample(scores: np.ndarray, resamples: int = 300) -> MetricSample:
    """``scores`` (S, N): the metric is the mean over images."""
    seeds, count = scores.shape
    weights = image_weights(names(count), resamples=resamples)
    resampled = scores @ weights.T / weights.sum(axis=1)
    return MetricSample(tuple(range(seeds)), scores.mean(axis=1), resampled, count)


def names(count: int) -> tuple[str, ...]:
    return tuple(f"{number}.jpg" for number in range(count))


def gap_of(mine: MetricSample, base: MetricSample) -> Estimate:
    return estimate(difference(mine, base))


def test_one_seed_is_scipys_bootstrap_with_students_quantile():
    values = np.random.default_rng(0).gamma(2.0, 3.0, 200)
    ours = estimate(sample(values[None], 4000))
    theirs = stats.bootstrap(
        (values,), np.mean, method="percentile", n_resamples=4000, rng=np.random.default_rng(1)
    )
    assert ours.images == 200 and ours.seeds == 1 and np.isnan(ours.error)
    low, high = theirs.confidence_interval
    assert ours.low == pytest.approx(low, abs=0.1) and ours.high == pytest.approx(high, abs=0.1)


def test_seeds_alone_are_students_t():
    values = np.array([40.0, 42.0, 45.0])
    interval = estimate(MetricSample((0, 1, 2), values))
    low, high = stats.t.interval(0.95, 2, values.mean(), stats.sem(values))
    assert (interval.low, interval.high) == (pytest.approx(low), pytest.approx(high))
    assert interval.error == pytest.approx(stats.sem(values)) and not interval.images
    only = estimate(MetricSample((0,), values[:1]))
    assert not only.has_interval and only.verdict() == "unknown"


def test_what_is_of_one_seed_on_one_image_counts_once():
    """The variance of the mean of 4 × 400 independent scores, however it is looked at."""
    rng = np.random.default_rng(1)
    total = np.mean([estimate(sample(rng.normal(0, 1, (4, 400)))).variance for _ in range(60)])
    assert total == pytest.approx(1 / 1600, rel=0.25)
    repeated = estimate(sample(np.repeat(rng.normal(0, 1, (1, 400)), 4, axis=0)))
    assert repeated.image_variance == pytest.approx(1 / 400, rel=0.25)
    assert repeated.seed_variance == 0


def test_a_real_difference_is_found_and_a_loss_is_one_where_less_is_better():
    rng = np.random.default_rng(5)
    hard = rng.normal(0, 5, 200)
    a, b = (sample(base + hard + rng.normal(0, 1, (3, 200))) for base in (52, 50))
    assert gap_of(a, b).verdict() == "win" and gap_of(a, b).verdict(-1) == "loss"
    assert gap_of(a, b).reach() < 0.6 * estimate(a).reach(), "images are paired"
    assert gap_of(b, a).verdict(-1) == "win" and gap_of(a, a).verdict() == "tie"


@pytest.mark.parametrize("images", [1, 19])
def test_few_images_decide_nothing(images):
    better = np.full((1, images), 60.0) + np.arange(images)
    assert gap_of(sample(better), sample(better - 30)).verdict() == "unknown"


def test_fewer_than_three_common_seeds_pair_nothing():
    """All seeds of both count, by Welch's t."""
    rng = np.random.default_rng(0)
    mine, base = rng.normal(51, 1, 3), rng.normal(50, 1, 5)
    gap = gap_of(MetricSample((0, 1, 2), mine), MetricSample((1, 2, 3, 4, 5), base))
    theirs = stats.ttest_ind(mine, base, equal_var=False)
    assert gap.seeds == 3 and gap.value == pytest.approx(mine.mean() - base.mean())
    assert gap.seed_df == pytest.approx(theirs.df)
    low, high = theirs.confidence_interval(0.95)
    assert (gap.low, gap.high) == (pytest.approx(low), pytest.approx(high))
    scores = rng.normal(50, 5, 200) + rng.normal(0, 1, (3, 200))
    paired, other = sample(scores), replace(sample(scores), seeds=(0, 1, 7))
    assert gap_of(paired, paired).seed_variance == 0 < gap_of(paired, other).seed_variance


def test_value_and_noise_come_from_the_seeds_that_both_have():
    mine, base = np.array([51.0, 51.5, 52.0, 10.0, 90.0]), np.array([50.0, 50.6, 51.1])
    gap = gap_of(MetricSample((0, 1, 2, 3, 4), mine), MetricSample((0, 1, 2), base))
    paired = stats.ttest_rel(mine[:3], base)
    assert gap.value == pytest.approx(np.mean(mine[:3] - base)) and gap.seeds == 3
    assert gap.low == pytest.approx(paired.confidence_interval(0.95).low)
    single = gap_of(MetricSample((0, 1, 2), base), MetricSample((1,), base[:1]))
    assert single.seeds == 1 and not single.has_interval


def test_an_image_is_drawn_alike_in_all_datasets_of_a_set():
    complete = tuple(f"val/{number % 7}/{number}.jpg" for number in range(50))
    some = tuple(f"images/{number}.jpg" for number in range(10, 30))
    drawn = image_weights(complete, "birds")
    assert (image_weights(some, "birds") == drawn[:, 10:30]).all()
    assert drawn.mean() == pytest.approx(1, abs=0.02) and drawn.var() == pytest.approx(1, abs=0.03)
    other, own = image_weights(some, "boats"), image_weights(some)
    for each in (other, own):
        assert abs(np.corrcoef(each.ravel(), drawn[:, 10:30].ravel())[0, 1]) < 0.03
    # one file name in each folder: images are told apart by their paths
    alike = image_weights(tuple(f"{folder}/1.jpg" for folder in range(50)), "birds")
    assert abs(np.corrcoef(alike[:, :25].ravel(), alike[:, 25:].ravel())[0, 1]) < 0.03


def test_a_mean_over_tasks_keeps_what_they_share():
    """Tasks whose errors cancel on the same images."""
    noise = np.random.default_rng(6).normal(0, 5, 100)
    up, down = (sample((50 + way * noise)[None]) for way in (1, -1))
    half = [0.5, 0.5]
    assert estimate(weighted_sum([up, down], half)).reach() < 1e-3
    assert estimate(weighted_sum([up, up], half)).reach() > 0.5


def test_an_interval_of_a_share_is_wilsons():
    for right, count in ((8, 400), (198, 200), (100, 200), (0, 50), (50, 50)):
        scores = np.zeros((1, count))
        scores[0, :right] = 100
        number = replace(estimate(sample(scores, 1000), width=100.0), least=0.0, width=100.0)
        expected = stats.binomtest(right, count).proportion_ci(method="wilson")
        assert number.low == pytest.approx(100 * expected.low, abs=0.35)
        assert number.high == pytest.approx(100 * expected.high, abs=0.35)
        assert 0 <= number.low <= number.value <= number.high <= 100


def test_an_error_is_not_negative_and_a_difference_may_be(report):
    """Of few images, of which one has nearly all of the error."""
    errors = np.full((1, 25), 1e-3)
    errors[0, 0] = 5.0
    number = estimate(sample(errors))
    bounded = replace(number, least=0.0)
    assert number.low == pytest.approx(2 * number.value - number.high) and number.low < 0
    assert (bounded.low, bounded.high) == (0.0, number.high)
    assert np.isnan(replace(Estimate(0.5), least=0.0).low), "no noise is known"
    assert gap_of(sample(errors), sample(errors[:, ::-1])).low < 0
    errors_of = {
        number.least for key, number in report.analysis.estimates.items() if key[2] == "rmse"
    }
    assert errors_of == {0.0}


def test_where_no_image_differs_one_may():
    right = sample(np.full((1, 50), 100.0))
    gap = estimate(difference(right, right), width=100.0)
    assert gap.low == pytest.approx(-gap.high) and 2 < gap.high < 6 and gap.verdict() == "tie"


def test_equal_values_without_images_are_no_evidence():
    same = MetricSample((0, 1, 2), np.full(3, 71.3))
    gap = gap_of(same, MetricSample((0, 1, 2), np.full(3, 71.2)))
    assert gap.verdict() == "unknown" and not gap.has_interval
    scores = np.random.default_rng(0).normal(50, 5, (1, 200)).repeat(3, axis=0)
    gap = gap_of(sample(scores + 1), sample(scores))
    assert gap.verdict() == "win", "a probe without randomness, whose images are known"


def test_a_resample_without_a_score_is_left_out():
    complete = sample(np.random.default_rng(0).normal(50, 5, (3, 100)), 600)
    holes = complete.resamples.copy()
    holes[:, ::3] = np.nan
    without = replace(complete, resamples=np.delete(holes, np.s_[::3], axis=1))
    ours = estimate(replace(complete, resamples=holes))
    assert ours.image_variance == pytest.approx(estimate(without).image_variance, rel=0.02)


def test_verdicts_hold_together_and_what_is_decided_passes_its_share_on():
    """Holm's step-down of p = 0.0016, 0.024, 0.2: equal shares decide two, Bonferroni's one."""
    values = [3.16, 2.26, 1.28]
    gaps = [Estimate(value, 1.0, images=10**6) for value in values]
    assert [gap.verdict() for gap in judge_jointly(gaps)] == ["win", "win", "tie"]
    assert [gap.verdict() for gap in judge_jointly(gaps[1:] * 2)] == ["tie"] * 4
    few = replace(gaps[0], images=10)
    assert judge_jointly([gaps[1], *[few] * 9])[0].verdict() == "win", "what has no verdict is free"
    first = judge_jointly(gaps[1:], [9, 1])[0]
    assert first.level == pytest.approx(0.045)


def test_what_waits_for_a_parent_shares_what_the_parent_leaves():
    """p = 0.0016, 0.2 and two further ones of 0.0016, each with a quarter of its parent's share."""
    clear, unclear = (Estimate(value, 1.0, images=10**6) for value in (3.16, 1.28))
    gaps, weights = [clear, unclear, clear, clear], [1, 1, 0.25, 0.25]
    judged = judge_jointly(gaps, weights, parents=[-1, -1, 0, 1])
    assert [gap.verdict() for gap in judged] == ["win", "tie", "win", "tie"]
    assert judged[2].level == pytest.approx(0.05 * 0.25 / 1.25) and judged[3].level == 0
    unknown = replace(clear, images=0)
    judged = judge_jointly([unknown, clear], parents=[-1, 0])
    assert [gap.verdict() for gap in judged] == ["unknown"] * 2


def test_seeds_images_and_differences_that_would_decide():
    exact = Estimate(0.0, 1.0, images=10**6)
    assert exact.detectable() == pytest.approx(1.96 + 0.8416, abs=0.03)
    assert exact.detectable(images=10**6 // 4) == pytest.approx(2 * exact.detectable(), rel=1e-3)
    assert np.isnan(exact.detectable(seeds=3)), "one seed does not show their noise"
    gap = Estimate(2.0, 0.2, 1.0, 2, seeds=3, images=200)
    seeds = gap.seeds_to_decide(2.0)
    assert gap.detectable(seeds) <= 2.0 < gap.detectable(seeds - 1) < gap.detectable()
    images = gap.images_to_decide(2.0, seeds=seeds - 1)
    assert images is None or gap.detectable(seeds - 1, images) <= 2.0
    assert replace(gap, image_variance=4.0).seeds_to_decide(2.0) is None, "images do not grow"
    assert replace(gap, seed_variance=0.0, seed_df=0.0).images_to_decide(2.0) < 200
