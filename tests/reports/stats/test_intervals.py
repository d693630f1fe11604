"""Intervals over seeds and images: each noise counts once, pairing pairs, and nothing is decided
without cause."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from scipy import stats

import probes.catalog  # noqa: F401  registers the metrics of every kind
from reports.stats.intervals import Estimate, Part, combine, estimate, half_width
from reports.stats.per_image import image_scores
from reports.stats.resampling import MetricSample, Quantity, difference, image_weights
from reports.stats.seeds import NO_PRIOR, SeedPrior


def sample(scores: np.ndarray, weights: np.ndarray) -> MetricSample:
    """``scores`` (S, N): the metric is the mean over images."""
    seeds, count = scores.shape
    return MetricSample(tuple(range(seeds)), scores.mean(axis=1), scores @ weights.T / count, count)


def names(count: int) -> tuple[str, ...]:
    return tuple(f"{number}.jpg" for number in range(count))


def gap_of(mine: MetricSample, base: MetricSample) -> Estimate:
    return combine([difference(mine, base)])


def test_one_seed_is_scipys_bootstrap_with_students_quantile():
    values = np.random.default_rng(0).gamma(2.0, 3.0, 200)
    ours = estimate(Quantity((sample(values[None], image_weights(names(200), 4000)),)))
    theirs = stats.bootstrap(
        (values,), np.mean, method="percentile", n_resamples=4000, rng=np.random.default_rng(1)
    )
    assert ours.images == 200 and ours.seeds == 1 and np.isnan(ours.error)
    assert np.sqrt(ours.parts[0].variance) == pytest.approx(
        theirs.standard_error * np.sqrt(200 / 199), rel=0.05
    )
    assert ours.reach == pytest.approx(stats.t.ppf(0.975, 199) * np.sqrt(ours.parts[0].variance))
    low, high = theirs.confidence_interval
    assert ours.low == pytest.approx(low, abs=0.1) and ours.high == pytest.approx(high, abs=0.1)


def test_seeds_alone_are_students_t():
    values = np.array([40.0, 42.0, 45.0])
    interval = estimate(Quantity((MetricSample((0, 1, 2), values),)))
    low, high = stats.t.interval(0.95, 2, values.mean(), stats.sem(values))
    assert (interval.low, interval.high) == (pytest.approx(low), pytest.approx(high))
    assert interval.error == pytest.approx(stats.sem(values)) and not interval.images
    only = estimate(Quantity((MetricSample((0,), values[:1]),)))
    assert not only.has_interval and only.verdict() == "unknown"


@pytest.mark.parametrize("level", [0.05, 0.003, 0.0002])
def test_a_half_width_is_behrens_and_fishers_and_exact_for_one_part(level):
    rng = np.random.default_rng(0)
    for parts in ([(2.0, 99), (1.0, 2)], [(1.0, 30), (1.0, 4), (0.5, 4), (0.5, 2)]):
        draws = [np.sqrt(v) * rng.standard_t(df, 400_000) for v, df in parts]
        width = half_width(tuple(Part(*part) for part in parts), level)
        missed = np.mean(np.abs(np.sum(draws, axis=0)) > width)
        assert missed == pytest.approx(level, abs=4 * np.sqrt(level / 400_000))
    for df in (1, 2, 3.5, 500):
        exact = 2 * stats.t.isf(level / 2, df)
        assert half_width((Part(4.0, df, 3),), level) == pytest.approx(exact, rel=2e-3)
    assert half_width((Part(0.0, 5),), level) == 0
    nothing = (Part(1.0, 30), Part(1e-20, 2, 3), Part(1e-20, 2, 3))
    assert half_width(nothing, level) == half_width(nothing[:1], level)


def test_verdicts_err_on_the_safe_side():
    images, seeds = Part(1.0, 1e6), Part(1.0, 2, 3)
    plain = (images, seeds._replace(seeds=0))
    assert half_width((images, seeds), 0.05) < 0.95 * half_width(plain, 0.05)
    assert half_width((images, seeds), 0.001) == half_width(plain, 0.001)


def test_what_is_of_one_seed_on_one_image_counts_once():
    """The variance of the mean of 4 × 400 independent scores, however it is looked at."""
    rng, weights = np.random.default_rng(1), image_weights(names(400), 500)
    estimates = [
        estimate(Quantity((sample(rng.normal(0, 1, (4, 400)), weights),))) for _ in range(60)
    ]
    total = np.mean([sum(part.variance for part in each.parts) for each in estimates])
    assert total == pytest.approx(1 / 1600, rel=0.25)
    repeated = np.repeat(rng.normal(0, 1, (1, 400)), 4, axis=0)
    apart = estimate(Quantity((sample(repeated, weights),)))
    assert (
        apart.parts[0].variance == pytest.approx(1 / 400, rel=0.25) and apart.parts[1].variance == 0
    )


def test_a_real_difference_is_found_and_a_loss_is_one_where_less_is_better():
    rng = np.random.default_rng(5)
    weights = image_weights(names(200), 300)
    hard = rng.normal(0, 5, 200)
    a, b = (sample(base + hard + rng.normal(0, 1, (3, 200)), weights) for base in (52, 50))
    assert gap_of(a, b).verdict() == "win" and gap_of(a, b).verdict(-1) == "loss"
    assert gap_of(a, b).reach < 0.6 * estimate(Quantity((a,))).reach, "images are paired"
    assert gap_of(b, a).verdict(-1) == "win" and gap_of(a, a).verdict() == "tie"


def test_one_image_decides_nothing_and_fewer_than_twenty_neither():
    better = np.full((1, 19), 60.0) + np.arange(19)
    weights = image_weights(names(19), 100)
    assert gap_of(sample(better, weights), sample(better - 30, weights)).verdict() == "unknown"
    single = image_weights(names(1), 100)
    assert not gap_of(
        sample(better[:, :1], single), sample(better[:, :1] - 30, single)
    ).has_interval


def test_value_and_noise_come_from_the_seeds_that_both_have():
    mine, base = np.array([51.0, 51.5, 52.0, 10.0, 90.0]), np.array([50.0, 50.6, 51.1])
    gap = gap_of(MetricSample((0, 1, 2, 3, 4), mine), MetricSample((0, 1, 2), base))
    paired = stats.ttest_rel(mine[:3], base)
    assert gap.value == pytest.approx(np.mean(mine[:3] - base)) and gap.seeds == 3
    assert gap.low == pytest.approx(paired.confidence_interval(0.95).low)


def test_other_seeds_are_not_paired_and_one_seed_has_no_noise_of_seeds():
    values = np.array([40.0, 50.0, 60.0])
    closer = values + np.array([0.99, 1.0, 1.01])
    same = gap_of(MetricSample((0, 1, 2), closer), MetricSample((0, 1, 2), values))
    unpaired = gap_of(MetricSample((0, 1, 2), values + 1), MetricSample((3, 4, 5), values))
    assert (
        same.value == pytest.approx(1)
        and unpaired.value == 1
        and same.verdict() == "win"
        and unpaired.verdict() == "tie"
    )
    assert unpaired.error == pytest.approx(np.sqrt(2) * stats.sem(values))
    assert (
        stats.ttest_ind(values + 1, values, equal_var=False).confidence_interval(0.95).high
        <= unpaired.high
    )
    single = gap_of(MetricSample((0, 1, 2), values), MetricSample((1,), values[:1]))
    assert single.value == 10.0 and not single.has_interval


def test_images_of_one_side_alone_are_no_noise_of_a_pair():
    weights = image_weights(names(50), 100)
    resampled = sample(np.random.default_rng(10).normal(50, 5, (1, 50)), weights)
    bare = MetricSample((0,), np.array([49.0]))
    assert not gap_of(resampled, bare).has_interval


def test_tasks_on_the_same_images_keep_their_correlation():
    """Two tasks whose errors cancel have a mean without noise; independent resamples would give it
    some."""
    rng = np.random.default_rng(6)
    weights = image_weights(names(100), 500)
    noise = rng.normal(0, 5, 100)
    up, down = (Quantity((sample((50 + way * noise)[None], weights),)) for way in (1, -1))
    mean = lambda values: values.mean(axis=0)
    assert combine([up, down], mean).reach < 1e-3 < 0.5 < combine([up, up], mean).reach


def test_seeds_are_common_to_tasks_and_a_task_with_one_seed_takes_no_noise_from_the_others():
    seeds = np.array([-80.0, 0.0, 80.0])
    first, same = MetricSample((0, 1, 2), seeds), MetricSample((0, 1, 2), seeds)
    single = MetricSample((0,), seeds[:1])
    mean = lambda values: values.mean(axis=0)
    together = combine([Quantity((first,)), Quantity((same,))], mean)
    assert together.error == pytest.approx(stats.sem(seeds)), (
        "what moves both tasks does not average out"
    )
    some = combine([Quantity((first,)), Quantity((single,))], mean)
    assert some.error == pytest.approx(stats.sem(seeds) / 2)
    fewer = combine([Quantity((first,)), Quantity((MetricSample((0, 1), seeds[:2]),))], mean)
    apart = (stats.sem(seeds) ** 2 + stats.sem(seeds[:2]) ** 2) / 4
    assert fewer.error**2 > 0.9 * apart and fewer.parts[0].df == 1


def test_an_interval_of_a_share_is_wilsons():
    for right, count in ((8, 400), (198, 200), (100, 200), (0, 50), (50, 50)):
        scores = np.zeros((1, count))
        scores[0, :right] = 100
        number = estimate(Quantity((sample(scores, image_weights(names(count), 1000)),)))
        number = replace(number, least=0.0, most=100.0)
        expected = stats.binomtest(right, count).proportion_ci(method="wilson")
        assert number.low == pytest.approx(100 * expected.low, abs=0.35)
        assert number.high == pytest.approx(100 * expected.high, abs=0.35)
        assert 0 <= number.low <= number.value <= number.high <= 100


def test_an_interval_stays_where_the_number_can_be():
    part = (Part(1.0, 1000),)
    assert Estimate(1.0, part, least=0.0).low == 0
    assert Estimate(-3.0, part, least=0.0).low == -3.0, (
        "a number that is outside stays in its interval"
    )
    assert np.isnan(Estimate(1.0, least=0.0).low)


def test_equal_values_without_images_are_no_evidence():
    same = MetricSample((0, 1, 2), np.full(3, 71.3))
    gap = gap_of(same, MetricSample((0, 1, 2), np.full(3, 71.2)))
    assert gap.verdict() == "unknown" and not gap.has_interval
    assert not estimate(Quantity((same,))).has_interval
    weights = image_weights(names(200), 300)
    scores = np.random.default_rng(0).normal(50, 5, (1, 200)).repeat(3, axis=0)
    gap = gap_of(sample(scores + 1, weights), sample(scores, weights))
    assert gap.verdict() == "win", "a probe without randomness, whose images are known"


def test_a_resample_without_a_score_is_left_out():
    scores = np.random.default_rng(0).normal(50, 5, (3, 100))
    complete = sample(scores, image_weights(names(100), 600))
    holes = complete.resamples.copy()
    holes[:, ::3] = np.nan
    partial = replace(complete, resamples=holes)
    without = replace(complete, resamples=np.delete(holes, np.s_[::3], axis=1))
    ours, theirs = (estimate(Quantity((each,))) for each in (partial, without))
    assert ours.parts[0].variance == pytest.approx(theirs.parts[0].variance, rel=0.02)
    other = replace(complete, values=complete.values + 1)
    assert gap_of(partial, other).has_interval


def test_a_prior_moderates_seeds_alone():
    rng = np.random.default_rng(2)
    contrast_ = Quantity((sample(rng.normal(50, 5, (3, 100)), image_weights(names(100), 300)),))
    plain, moderated = estimate(contrast_), estimate(contrast_, SeedPrior(2.0, 8.0))
    assert moderated.parts[0] == plain.parts[0]
    own, part = plain.parts[1], moderated.parts[1]
    expected = (8 * 2.0 * contrast_.image_variance / 3 + 2 * own.variance) / 10
    assert part.variance == pytest.approx(expected) and part.df == 10
    assert estimate(contrast_, NO_PRIOR) == plain


def test_seeds_and_differences_that_would_decide():
    size = Estimate(0.0, (Part(1.0, 1e6),)).detectable()
    assert size == pytest.approx(1.96 + 0.8416, abs=1e-3)
    gap = Estimate(2.0, (Part(0.2, 199), Part(1.0, 2, 3)), seeds=3)
    count = gap.seeds_to_decide()
    assert gap.verdict() == "tie" and count is not None
    reach = [half_width((Part(0.2, 199), Part(3 / n, n - 1, n)), 0.05) for n in (count - 1, count)]
    assert reach[0] >= 2.0 > reach[1]
    assert Estimate(2.0, (Part(4.0, 199), Part(1.0, 2, 3)), seeds=3).seeds_to_decide() is None, (
        "images do not grow"
    )


def test_an_interval_of_miou_covers_the_miou_of_all_images_there_could_be():
    """Areas are summed before they are divided; the target is the mIoU of a large population."""
    rng = np.random.default_rng(8)
    count, tries, many = 100, 300, 40_000
    weights = image_weights(names(count), 300)

    def simulate(images: int):
        """mIoU as a function of how often each image counts."""
        label = rng.integers(0, 400, (images, 4))
        hit = (label * rng.beta(4, 2, (images, 1))).astype(int)  # hard and easy images
        prediction = hit + np.roll(label - hit, 1, axis=1)
        areas = {"intersection": hit, "prediction": prediction, "label": label}
        return image_scores("segmentation", {"image": np.array(names(images)), **areas}).metrics[
            "mIoU"
        ]

    (expected,) = simulate(many)(np.ones((1, many)))
    covered = 0
    for _ in range(tries):
        miou = simulate(count)
        simulated = MetricSample((0,), miou(np.ones((1, count))), miou(weights)[None], count)
        interval = estimate(Quantity((simulated,)))
        covered += interval.low <= expected <= interval.high
    assert 0.91 <= covered / tries <= 0.988, covered / tries  # 3.3 binomial standard errors
