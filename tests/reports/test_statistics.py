"""Intervals cover what they say, pairing pairs, and nothing is decided without cause."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from reports.per_image import image_scores
from reports.statistics import (
    Estimate,
    Sample,
    difference,
    enlarged,
    estimate,
    has_ratio,
    image_draws,
    mean_ranks,
    relative_gain,
)


def sample(scores: np.ndarray, weights: np.ndarray, seeds=None) -> Sample:
    """``scores`` (S, N): the metric is the mean over images."""
    count = scores.shape[1]
    draws = np.stack([enlarged(weights @ one / count, one.mean(), count) for one in scores])
    return Sample(tuple(seeds or range(len(scores))), scores.mean(axis=1), draws)


def names(count: int) -> list[str]:
    return [f"{number}.jpg" for number in range(count)]


def test_draws_are_of_as_many_images_and_the_same_for_the_same_images():
    weights = image_draws(names(50), 400)
    assert weights.shape == (400, 50) and (weights.sum(axis=1) == 50).all()
    assert (weights == image_draws(names(50), 400)).all()
    assert (weights != image_draws(names(51), 400)[:, :50]).any()
    assert weights.mean() == 1 and weights.var() == pytest.approx(1 - 1 / 50, abs=0.05), "multinomial counts"


def test_one_seed_is_scipys_percentile_bootstrap():
    values = np.random.default_rng(0).gamma(2.0, 3.0, 200)
    found = estimate(sample(values[None], image_draws(names(200), 4000)))
    theirs = stats.bootstrap((values,), np.mean, method="percentile", n_resamples=4000, rng=np.random.default_rng(1))
    low, high = theirs.confidence_interval
    assert found.images and found.seeds == 1 and np.isnan(found.error)
    assert found.low == pytest.approx(low, abs=0.06) and found.high == pytest.approx(high, abs=0.06)


def test_seeds_alone_are_students_t():
    values = np.array([40.0, 42.0, 45.0])
    found = estimate(Sample((0, 1, 2), values))
    low, high = stats.t.interval(0.95, 2, values.mean(), stats.sem(values))
    assert (found.low, found.high) == (pytest.approx(low), pytest.approx(high))
    assert found.error == pytest.approx(stats.sem(values)) and not found.images
    only = estimate(Sample((0,), values[:1]))
    assert not only.known and only.verdict() == "unknown"


@pytest.mark.parametrize(
    ("seeds", "seed_noise", "image_noise"), [(1, 0.0, 3.0), (3, 1.0, 3.0), (5, 2.0, 0.5), (3, 0.0, 3.0)]
)
def test_a_95_percent_interval_covers_95_percent(seeds, seed_noise, image_noise):
    """Truth: the mean over all images and seeds there could be."""
    rng = np.random.default_rng(3)
    count, tries = 100, 500
    weights = image_draws(names(count), 400)
    covered = 0
    for _ in range(tries):
        hard = rng.normal(0, image_noise, count)
        scores = 30 + hard + rng.normal(0, seed_noise, (seeds, 1)) + rng.normal(0, 0.5, (seeds, count))
        found = estimate(sample(scores, weights))
        covered += found.low <= 30 <= found.high
    # 3.3 binomial standard errors below; above, the sum of two noises may be a little too careful
    assert 0.918 <= covered / tries <= 0.992, covered / tries


def test_paired_differences_cover_too_and_are_narrower_than_unpaired():
    rng = np.random.default_rng(4)
    count, tries, seeds = 100, 400, 3
    weights = image_draws(names(count), 400)
    covered, wins, widths = 0, 0, []
    for _ in range(tries):
        hard = rng.normal(0, 5, count)
        shared = rng.normal(0, 1, (seeds, 1))  # both sides start from the same weights of a seed
        a, b = (sample(50 + hard + shared + rng.normal(0, 1, (seeds, count)), weights) for _ in range(2))
        found = difference(a, b)
        covered += found.low <= 0 <= found.high
        wins += found.verdict() == "win"
        own = estimate(a)
        widths.append((found.high - found.low) / (own.high - own.low))
    assert covered / tries >= 0.918
    assert wins / tries <= 0.045, "equal backbones win one time in forty"
    assert np.median(widths) < 0.35


def test_a_real_difference_is_found_and_a_loss_is_one_where_less_is_better():
    rng = np.random.default_rng(5)
    weights = image_draws(names(200), 500)
    hard = rng.normal(0, 5, 200)
    a, b = (sample(base + hard + rng.normal(0, 1, (3, 200)), weights) for base in (52, 50))
    assert difference(a, b).verdict() == "win" and difference(a, b).verdict(-1) == "loss"
    assert difference(b, a).verdict(-1) == "win" and difference(a, a).verdict() == "tie"


def test_other_seeds_are_not_paired():
    values = np.array([40.0, 50.0, 60.0])
    same = difference(Sample((0, 1, 2), values + 1), Sample((0, 1, 2), values))
    other = difference(Sample((0, 1, 2), values + 1), Sample((3, 4, 5), values))
    assert same.value == other.value == 1 and same.verdict() == "win" and other.verdict() == "tie"
    assert other.error == pytest.approx(np.sqrt(2) * stats.sem(values))


def test_relative_gain_knows_which_way_is_better():
    base = [Sample((0,), np.array([50.0])), Sample((0,), np.array([0.4]))]
    mine = [Sample((0,), np.array([55.0])), Sample((0,), np.array([0.3]))]
    assert relative_gain(mine, base, [1, -1]).value == pytest.approx((10 + 25) / 2)
    assert relative_gain(base, mine, [1, -1]).value == pytest.approx((-100 / 11 - 100 / 3) / 2)
    assert has_ratio(Estimate(5, 1, 9)) and not has_ratio(Estimate(5, -1, 9)) and not has_ratio(Estimate(0.0))


def test_relative_gain_over_tasks_on_the_same_images_keeps_their_correlation():
    """Two tasks whose errors cancel have a mean gain without noise; independent draws would give it some."""
    rng = np.random.default_rng(6)
    weights = image_draws(names(100), 500)
    noise = rng.normal(0, 5, 100)
    flat = sample(np.full((1, 100), 50.0), weights)
    up, down = sample((50 + noise)[None], weights), sample((50 - noise)[None], weights)
    found = relative_gain([up, down], [flat, flat], [1, 1])
    assert found.value == pytest.approx(0, abs=1e-9) and found.high - found.low < 1e-3
    assert relative_gain([up], [flat], [1]).high > 1


def test_mean_ranks():
    def task(*values):
        return [Sample((0, 1), np.array([v, v])) for v in values]

    a, b, c = task(3, 10), task(2, 20), task(1, 20)
    ranks = mean_ranks({"a": a, "b": b, "c": c}, [1, -1])
    expected = (stats.rankdata([-3, -2, -1]) + stats.rankdata([10, 20, 20])) / 2
    assert [ranks[n].value for n in "abc"] == expected.tolist()


def test_an_interval_stays_where_the_number_can_be():
    assert Estimate(1.0, -3.0, 5.0).within(0, 100).low == 0
    assert Estimate(99.0, 97.0, 104.0).within(0, 100).high == 100
    assert not Estimate(1.0).within(0, 100).known


def test_an_interval_of_miou_covers_the_miou_of_all_images_there_could_be():
    """Areas are summed before they are divided: of many more images than the validation set holds, what it estimates."""
    rng = np.random.default_rng(8)
    count, tries, many = 100, 400, 40_000
    weights = image_draws(names(count), 400)

    def areas(images: int) -> dict[str, np.ndarray]:
        label = rng.integers(0, 400, (images, 4))
        hit = (label * rng.beta(4, 2, (images, 1))).astype(int)  # hard and easy images
        return {
            "image": np.array(names(images)),
            "intersection": hit,
            "prediction": hit + np.roll(label - hit, 1, axis=1),
            "label": label,
        }

    def miou(found: dict[str, np.ndarray], draws: np.ndarray) -> np.ndarray:
        scores = image_scores("segmentation", found)
        assert scores is not None
        return scores.metrics["mIoU"](draws)

    (truth,) = miou(areas(many), np.ones((1, many)))
    covered = 0
    for _ in range(tries):
        found = areas(count)
        (value,) = miou(found, np.ones((1, count)))
        drawn = enlarged(miou(found, weights), value, count)
        one = estimate(Sample((0,), np.array([value]), drawn[None]))
        covered += one.low <= truth <= one.high
    assert 0.914 <= covered / tries <= 0.986, covered / tries  # 3.3 binomial standard errors


@pytest.mark.parametrize("other", [(0, 1, 2), (3, 4, 5), (0,)], ids=["same seeds", "other seeds", "one seed"])
def test_an_interval_of_the_mean_relative_gain_covers_and_holds_the_noise_of_every_side(other):
    """Two tasks, one of them with less is better; nothing differs but luck (the gain's own bias is a tenth of its noise)."""
    rng = np.random.default_rng(9)
    tries = 300
    covered = 0
    for _ in range(tries):
        noise = {"mine": (0, 1, 2), "base": other}
        tasks = [
            [Sample(s, level + rng.normal(0, 0.01 * level if len(s) > 1 else 0, len(s))) for s in noise.values()]
            for level in (50.0, 0.4)
        ]
        found = relative_gain([t[0] for t in tasks], [t[1] for t in tasks], [1, -1])
        assert found.known and not found.images
        covered += found.low <= 0 <= found.high
    assert covered / tries >= 0.908, covered / tries


def test_images_of_one_side_alone_are_no_noise_of_a_pair():
    weights = image_draws(names(50), 100)
    drawn = sample(np.random.default_rng(10).normal(50, 5, (1, 50)), weights)
    bare = Sample((0,), np.array([49.0]))
    assert not difference(drawn, bare).known and not relative_gain([drawn], [bare], [1]).known
    both = relative_gain([drawn, drawn], [bare, drawn], [1, 1])
    assert both.known and both.high - both.low < 1e-6, "the second task's difference has none"
