"""The statistics of reports, leaderboards and sweeps: resamples, intervals, verdicts, gains.

One procedure for whatever is a ``MetricSample``: a number, a difference, a mean gain, a score.
Images are resampled, and the metric is computed from each resample (mIoU from summed areas, AP from
pooled detections – never the mean of single images' scores). All backbones see the same resamples,
an image is drawn alike in all tasks that have it, and a seed is the same seed for all of them: so a
difference is *paired* in both. docs/statistics.md explains the procedure and has its simulations.
"""

from __future__ import annotations

import functools
import hashlib
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike

if TYPE_CHECKING:
    import pandas as pd


def relative_gain(value: float, base: float, sign: int, floor: float) -> float:
    """How much better ``value`` is than ``base``, in percent of ``base``; positive is better.

    Args:
        sign: +1 where higher is better, else -1.
        floor: the least that the base counts as (``Metric.floor``).
    """
    return 100.0 * sign * (value - base) / max(abs(base), floor)


def interquartile_mean(values: np.ndarray) -> np.ndarray:
    """(n,) the mean of the middle half of T values, (T, n): the objective of a sweep, whose single
    trials cannot tell which task is noise (Agarwal et al., NeurIPS 2021).

    Values at the quartiles count with their share inside, so that three tasks have a mean, too
    (0.17, 0.67, 0.17).
    """
    count = len(values)
    start = np.arange(count)
    inside = np.minimum(start + 1, 0.75 * count) - np.maximum(start, 0.25 * count)
    return np.clip(inside, 0, None) @ np.sort(values, axis=0) / (count / 2)


def task_weights(tasks: Sequence[str]) -> np.ndarray:
    """(columns,) weights of a mean over tasks, in which the columns of one task count once."""
    weights = np.array([1 / list(tasks).count(task) for task in tasks])
    return weights / weights.sum()


MIN_LIKENESS = 0.25


def part_likeness(small: np.ndarray, large: np.ndarray) -> float:
    """How much of what tells parts of images apart survives a change of size.

    Some encoders have another kind of features above some resolution (RADIO v2.1: Heinrich et al.
    2024, RADIOv2.5, "mode switching"), and no score of a probe that is trained at each size says
    so. The rule here is this project's own: a part of an image should look like itself at the next
    size, more than it looks like other parts::

        (s - o) / (1 - o)

    s is the mean cosine of a part at one size and the same part at the other, o that of different
    parts at one size. 1: sizes change nothing; 0: a part is no more like itself than like others.
    Below ``MIN_LIKENESS`` the features have changed mode. EfficientNet-Lite0, trained at 224 px,
    keeps 0.8 from 224 to 320 px and 0.6 from 224 to 448 px in its last map, ViTs with random
    weights 0.9; a network that switches to other weights keeps 0.

    Args:
        small, large: (parts, C), the same parts in the same order.
    Returns:
        NaN where all parts look the same at both sizes, or a feature is not finite.
    """
    sides = [each.astype(np.float64) for each in (small, large)]
    sides = [each / (np.linalg.norm(each, axis=1, keepdims=True) + 1e-12) for each in sides]
    same = (sides[0] * sides[1]).sum(axis=1).mean()
    count = len(small)
    pairs = count * (count - 1)
    references = [(np.square(each.sum(axis=0)).sum() - count) / pairs for each in sides]
    reference = float(np.mean(references))
    return float((same - reference) / (1 - reference)) if reference < 1 - 1e-6 else float("nan")


RESAMPLES = 1000
BLOCK = 1000  # images that are drawn at once, which bounds the memory
ROUNDING = 1e-9  # relative
MIN_PAIRS = 3  # seeds that both sides have: with fewer, pairing costs more than it saves


@dataclass(frozen=True)
class MetricSample:
    """A metric of one backbone in one column, or a weighted sum of such.

    Attributes:
        seeds: in order.
        values: (S,) the metric with each seed.
        resamples: (S, R) the same over each resample of images, or None if unknown; NaN where a
            resample has nothing to score.
        images: how many units (images, or what they are made of) are resampled; 0 if unknown.
        split: how many rows are of the first of two sides whose seeds are independent: the sample
            is the sum of both sides' means. 0 where all rows are of one side, or paired.
    """

    seeds: tuple[int, ...]
    values: np.ndarray
    resamples: np.ndarray | None = None
    images: int = 0
    split: int = 0

    @property
    def sides(self) -> list[slice]:
        """The rows of each side."""
        return [slice(self.split), slice(self.split, None)] if self.split else [slice(None)]

    @property
    def count(self) -> int:
        """How many seeds the side has that has fewer."""
        return min(len(self.seeds[side]) for side in self.sides)

    @property
    def value(self) -> float:
        """The mean over seeds, the sum of both sides'."""
        return float(sum(self.values[side].mean() for side in self.sides))

    @property
    def mean_over_seeds(self) -> MetricSample:
        """The value and its resamples, as of one seed."""
        resamples = None
        if self.resamples is not None:
            resamples = sum(self.resamples[side].mean(axis=0) for side in self.sides)[None]
        return MetricSample((0,), np.array([self.value]), resamples, self.images)

    @functools.cached_property
    def scored(self) -> np.ndarray:
        """(S, R') the resamples that have something to score; none if they are unknown."""
        if self.resamples is None:
            return np.empty((len(self.seeds), 0))
        return self.resamples[:, np.isfinite(self.resamples).all(axis=0)]

    @functools.cached_property
    def varies(self) -> bool:
        """Whether its seeds differ by more than rounding, in the metric or over resamples."""
        rows = np.hstack([self.values[:, None], self.scored])
        most = ROUNDING * np.abs(rows).max()
        return any((np.ptp(rows[side], axis=0) > most).any() for side in self.sides)

    def with_seeds(self, seeds: Sequence[int]) -> MetricSample:
        """The sample of these seeds alone."""
        if tuple(seeds) == self.seeds:
            return self
        rows = [self.seeds.index(seed) for seed in seeds]
        resamples = None if self.resamples is None else self.resamples[rows]
        return MetricSample(tuple(seeds), self.values[rows], resamples, self.images)

    @functools.cached_property
    def image_noise(self) -> tuple[float, float]:
        """Variances over resamples: of the value, and the part of it that is of single seeds.

        Times N / (N - 1), the bootstrap's shortfall (Efron, Tibshirani 1993, section 5.3); 0 if
        unknown.
        """
        if self.resamples is None or self.images < 2:
            return 0.0, 0.0
        total, interaction = np.zeros(self.scored.shape[1]), 0.0
        for side in self.sides:
            rows = self.scored[side]
            mean = rows.mean(axis=0)
            excess = rows.var(axis=1, ddof=1).mean() - mean.var(ddof=1)
            interaction += max(float(excess), 0.0) / max(len(rows) - 1, 1)
            total += mean
        shortfall = self.images / (self.images - 1)
        return float(total.var(ddof=1)) * shortfall, interaction * shortfall

    @functools.cached_property
    def seed_noise(self) -> tuple[float, float, float]:
        """Between seeds: the variance of the value, its degrees of freedom (of two sides Welch's),
        and by what it is multiplied for that of one seed; zeros for one seed."""
        if self.count < 2:
            return 0.0, 0.0, 0.0
        sizes = np.array([len(self.seeds[side]) for side in self.sides])
        parts = np.array([self.values[side].var(ddof=1) for side in self.sides]) / sizes
        variance, df = float(parts.sum()), float((sizes - 1).sum())
        if variance > 0:
            df = variance**2 / float((parts**2 / (sizes - 1)).sum())
        return variance, df, len(sizes) / float((1 / sizes).sum())

    @property
    def single_image_variance(self) -> float:
        """Over resamples, of one seed (of a pair of seeds)."""
        total, interaction = self.image_noise
        return total + interaction * max(self.seed_noise[2] - 1, 0.0)


def weighted_sum(samples: Sequence[MetricSample], weights: ArrayLike) -> MetricSample:
    """The sum of samples of the same seeds; the n-th seeds of all belong together.

    Its noise of images is unknown if that of any sample is.
    """
    weights, first = np.asarray(weights, float), samples[0]
    values = weights @ np.stack([sample.values for sample in samples])
    arrays = [sample.resamples for sample in samples if sample.resamples is not None]
    if len(arrays) < len(samples):
        return MetricSample(first.seeds, values, split=first.split)
    count = min(array.shape[1] for array in arrays)
    resamples = np.tensordot(weights, np.stack([array[:, :count] for array in arrays]), 1)
    images = min(sample.images for sample in samples)
    return MetricSample(first.seeds, values, resamples, images, first.split)


def difference(
    mine: MetricSample, base: MetricSample, *, weights: tuple[float, float] = (1.0, -1.0)
) -> MetricSample:
    """``mine`` - ``base``, or another weighted sum of both; seed by seed where they are paired,
    else of all seeds of both (see ``pair_samples``)."""
    mine, base = pair_samples(mine, base)
    if len(mine.seeds) == 1 or (len(mine.seeds) >= MIN_PAIRS and mine.seeds == base.seeds):
        return weighted_sum((mine, base), weights)
    sides = [weighted_sum([mine], weights[:1]), weighted_sum([base], weights[1:])]
    seeds, split = mine.seeds + base.seeds, len(mine.seeds)
    values = np.concatenate([side.values for side in sides])
    arrays = [side.resamples for side in sides if side.resamples is not None]
    if len(arrays) < 2:
        return MetricSample(seeds, values, split=split)
    count = min(array.shape[1] for array in arrays)
    resamples = np.concatenate([array[:, :count] for array in arrays])
    return MetricSample(seeds, values, resamples, min(mine.images, base.images), split)


def pair_samples(mine: MetricSample, base: MetricSample) -> list[MetricSample]:
    """Both sides with the seeds that are compared: those that both have, if these are enough for
    pairs or a side has only one; else all, which are taken as independent."""
    is_paired = len({*mine.seeds} & {*base.seeds}) >= MIN_PAIRS
    if is_paired or min(len(mine.seeds), len(base.seeds)) == 1:
        return with_common_seeds(mine, base)
    return [mine, base]


def with_common_seeds(*samples: MetricSample) -> list[MetricSample]:
    """The samples with the seeds that all have. Where there are none, seeds are independent, and
    any order pairs them."""
    shared = sorted(set.intersection(*(set(sample.seeds) for sample in samples)))
    count = min(len(sample.seeds) for sample in samples)
    return [sample.with_seeds(shared or sample.seeds[:count]) for sample in samples]


@functools.lru_cache(maxsize=2)  # tasks of one dataset follow each other
def image_weights(
    images: tuple[str, ...], image_set: str = "", resamples: int = RESAMPLES
) -> np.ndarray:
    """(R, N) float32: how often each image is in each resample: a number of Poisson's distribution
    with mean 1, as if images were drawn with replacement, but each on its own (Owen and Eckles,
    Ann. Appl. Stat. 6, 2012). So an image counts alike in every dataset that has it.

    It follows from the image's file name, or if several have this one from its path, and from the
    ``image_set`` (see ``reports.records.Cell``); without a set from all images' names.
    """
    names = [image.rpartition("/")[2] for image in images]
    times = Counter(names)
    names = [n if times[n] == 1 else image for n, image in zip(names, images, strict=True)]
    common = hashlib.sha256((image_set or "\n".join(images)).encode())
    weights = np.empty((resamples, len(images)), np.float32)
    for start in range(0, len(images), BLOCK):
        block = slice(start, start + BLOCK)
        weights[:, block] = np.transpose([_poisson(common, n, resamples) for n in names[block]])
    weights[~weights.any(axis=1)] = 1  # without any of a few images there is nothing to score
    return weights


def _poisson(common: Any, name: str, count: int) -> np.ndarray:
    """Numbers that follow from a hash and a name."""
    own = common.copy()
    own.update(f"\n{name}".encode())
    seed = int.from_bytes(own.digest()[:8], "little")
    return np.random.default_rng(seed).poisson(1.0, count)


LEVEL = 0.05  # of every interval that is shown, and of all verdicts of a report together
MIN_IMAGES = 20  # images: with fewer, nothing is decided
POWER = 0.8
MOST_SEEDS, MOST_IMAGES = 50, 1_000_000  # that are ever recommended
DRAWS = 20_000  # of the noise of a comparison that is planned
MOST_DF = 4  # degrees of freedom of a prior, per degree of a comparison
MIN_COMPARISONS = 3  # that make a prior
RAISED = 1.5  # standard errors by which a prior's moments are raised


@dataclass(frozen=True)
class SeedPrior:
    """What the other comparisons tell of a seed variance.

    Attributes:
        ratio: typical variance between seeds, relative to the variance over images of one seed.
        df: degrees of freedom of that knowledge; 0 for none.
    """

    ratio: float = 0.0
    df: float = 0.0


NO_PRIOR = SeedPrior()


@functools.lru_cache(maxsize=32)  # comparisons of equally many seeds share them
def _drawn(seed_df: float, df: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """``DRAWS`` of a true variance known with ``seed_df`` degrees of freedom, of what ``df`` more
    show of it, both relative to what they estimate, and of a standard normal error."""
    rng = np.random.default_rng(0)
    true, shown = np.ones((2, DRAWS))
    if seed_df:
        true = seed_df / rng.chisquare(seed_df, DRAWS)
        shown = rng.chisquare(df, DRAWS) / df
    return true, shown, rng.standard_normal(DRAWS)


@dataclass(frozen=True)
class Estimate:
    """A number with its noise.

    Attributes:
        value: mean over seeds.
        image_variance: of the value, from the sample of images.
        seed_variance, seed_df: of the value, from the seeds, and its degrees of freedom; 0 where
            there is one seed, or all give the same.
        seeds: how many.
        images: how many are resampled; 0 where their noise is unknown.
        interaction: the part of ``seed_variance`` that more images lower, from resamples.
        least, width: where the range of the number begins, and how wide it is; -∞ and 0 if it is
            open, or the number is a difference.
        level: of its verdict; its interval always has ``LEVEL``.
        has_verdict: False for what is not to be judged, whatever its interval.
    """

    value: float
    image_variance: float = 0.0
    seed_variance: float = 0.0
    seed_df: float = 0.0
    seeds: int = 1
    images: int = 0
    interaction: float = 0.0
    least: float = -np.inf
    width: float = 0.0
    level: float = LEVEL
    has_verdict: bool = True

    @property
    def variance(self) -> float:
        return self.image_variance + self.seed_variance

    @property
    def has_interval(self) -> bool:
        """Whether any of its noise is known; equal values alone do not show that there is none."""
        return self.images > 1 or self.seed_df > 0

    @property
    def is_judged(self) -> bool:
        """Whether there can be a verdict: never from seeds alone, whatever the images' noise."""
        return self.has_verdict and self.images >= MIN_IMAGES

    @property
    def error(self) -> float:
        """Standard error over seeds; NaN without."""
        return float(np.sqrt(self.seed_variance)) if self.seed_df else np.nan

    def reach(self, level: float = LEVEL) -> float:
        """Half of the width of an interval that misses with probability ``level``, apart from
        bounds; NaN if no noise is known.

        The standard error times the mean of both parts' Student quantiles, weighted by their
        variances (Cochran 1964).
        """
        return float(self._reach(level, self.seed_variance)) if self.has_interval else np.nan

    def _reach(self, level: float, seed_variance: np.ndarray | float) -> np.ndarray:
        total = self.image_variance + seed_variance
        of_images = self.image_variance * student(self.images - 1, level)
        squares = of_images + seed_variance * student(self.seed_df, level)
        return squares / np.sqrt(np.where(total > 0, total, 1.0))

    @functools.cached_property
    def interval(self) -> tuple[float, float]:
        """NaN if no noise is known. A bounded number has Wilson's interval with the effective size
        share · (1 - share) / variance (Franco et al., J. Survey Stat. Methodol. 7, 2019); one that
        has no upper bound does not reach below ``least``."""
        reach, above = self.reach(), self.value - self.least
        if not (self.has_interval and self.width and 0 <= above <= self.width):
            return max(self.value - reach, min(self.least, self.value)), self.value + reach
        share = above / self.width
        spread = share * (1 - share)
        shrunk = (reach / self.width) ** 2 / (spread or 1 / max(self.images, 1))
        centre = (share + shrunk / 2) / (1 + shrunk)
        half = float(np.sqrt(shrunk * spread + shrunk**2 / 4)) / (1 + shrunk)
        ends = (self.least + self.width * (centre + way * half) for way in (-1, 1))
        return min(self.value, next(ends)), max(self.value, next(ends))

    @property
    def low(self) -> float:
        return self.interval[0]

    @property
    def high(self) -> float:
        return self.interval[1]

    def is_decided(self, level: float) -> bool:
        """Whether a difference differs from zero."""
        return level > 0 and self.is_judged and abs(self.value) > self.reach(level)

    def verdict(self, sign: int = 1) -> str:
        """``win``, ``loss``, ``tie`` or ``unknown``.

        Args:
            sign: +1 where higher is better, else -1.
        """
        if not self.is_decided(self.level):
            return "tie" if self.is_judged else "unknown"
        return "win" if self.value * sign > 0 else "loss"

    def within(self, margin: float, level: float, sign: int = 1) -> str:
        """What the interval of ``level`` excludes: ``equivalent`` where it is inside ± ``margin``,
        ``no worse`` where its worse end is, else ''."""
        reach = self.reach(level)
        if not self.is_judged or not self.value * sign - reach > -margin:
            return ""
        return "equivalent" if self.value * sign + reach < margin else "no worse"

    def detectable(self, seeds: int = 0, images: int = 0) -> float:
        """The smallest difference that is decided with probability ``POWER`` by so many seeds of
        each side and images (0: as many as here), at this level; NaN where their noise is unknown.

        What a few seeds tell of their noise is uncertain now, and will be again: drawn are the true
        variance, what the next seeds show of it, and the error of their difference.
        """
        seeds, images = seeds or self.seeds, images or self.images
        if not (self.is_judged and self.level) or (seeds > 1) > (self.seeds > 1):
            return np.nan
        fewer = self.images / images
        of_one = self.interaction * self.seeds
        image_variance = fewer * (self.image_variance + of_one * (seeds == 1))
        seed_df, df, mean = 0.0, 0.0, 0.0
        if seeds > 1 and self.seed_df:
            seed_df = self.seed_df
            df = seed_df * _own_df(seeds) / _own_df(self.seeds)
            of_seeds = max(self.seed_variance * self.seeds - of_one, 0.0)
            mean = (of_seeds + of_one * fewer) / seeds
        true, shown, normal = _drawn(seed_df, df)
        planned = replace(self, image_variance=image_variance, images=images, seed_df=df)
        errors = np.sqrt(image_variance + mean * true) * normal
        reach = planned._reach(self.level, mean * true * shown)
        return float(np.quantile(reach + errors, POWER))

    def seeds_to_decide(self, size: float, images: int = 0) -> int | None:
        """How many seeds detect a difference; None for more than ``MOST_SEEDS``."""
        counts = range(2, MOST_SEEDS + 1) if self.seeds > 1 else range(1, 2)
        return _first(counts, lambda seeds: self.detectable(seeds, images) <= size)

    def images_to_decide(self, size: float, seeds: int = 0) -> int | None:
        """How many images detect a difference; None for more than ``MOST_IMAGES``."""
        counts = range(MIN_IMAGES, MOST_IMAGES + 1)
        return _first(counts, lambda images: self.detectable(seeds, images) <= size)


def _first(counts: range, is_enough: Callable[[int], bool]) -> int | None:
    row = bisect_left(counts, True, key=is_enough)
    return counts[row] if row < len(counts) else None


def _own_df(seeds: int) -> float:
    """Of pairs; with fewer about what Welch's are."""
    return seeds - 1 if seeds >= MIN_PAIRS else 1.5


@functools.lru_cache(maxsize=4096)
def student(df: float, level: float) -> float:
    """The two-sided quantile of Student's t."""
    from scipy import special

    return float(special.stdtrit(max(df, 1), 1 - level / 2))


def estimate(sample: MetricSample, prior: SeedPrior = NO_PRIOR, width: float = 0.0) -> Estimate:
    """The mean over seeds with its noise.

    The spread between seeds and the bootstrap of images both contain the interaction of the two; it
    is subtracted once from the bootstrap's.

    Args:
        width: of the range of an image's score, 0 if unknown. Where no image differs, one may.
    """
    images = sample.images if sample.resamples is not None else 0
    image_variance, interaction = sample.image_noise
    one_differs = (width / images) ** 2 if images else 0.0
    noise = (image_variance or one_differs, 0.0, 0.0)
    if sample.count > 1 and sample.varies:
        own, df, scale = sample.seed_noise
        weight = prior.df if sample.single_image_variance else 0.0
        typical = prior.ratio * sample.single_image_variance / scale
        variance = (weight * typical + df * own) / (weight + df)
        noise = (max(image_variance - interaction, 0.0), variance, weight + df)
    return Estimate(sample.value, *noise, sample.count, images, interaction)


def estimate_mean(samples: Sequence[MetricSample], weights: ArrayLike) -> Estimate:
    """The weighted sum of tasks' samples with its noise, of which the part that tasks share does
    not average out.

    Where all have the same seeds, it is the sum of each seed. Else it cannot be seen what their
    seeds share, and their standard errors over seeds are added, which is the most that the error of
    the sum can be, with the fewest degrees of freedom of any; if one has a single seed, so has the
    sum.

    Args:
        weights: not negative.
    """
    if len({(sample.seeds, sample.split) for sample in samples}) == 1:
        return estimate(weighted_sum(samples, weights))
    total = estimate(weighted_sum([sample.mean_over_seeds for sample in samples], weights))
    parts = [estimate(sample) for sample in samples]
    error = float(np.asarray(weights) @ np.sqrt([part.seed_variance for part in parts]))
    return replace(
        total,
        seed_variance=error**2,
        seed_df=min((part.seed_df for part in parts if part.seed_df), default=0.0),
        seeds=min(part.seeds for part in parts),
    )


def log_bias(df: ArrayLike) -> np.ndarray:
    """By how much the logarithm of an estimated variance falls short of the true one, on average
    (negative)."""
    from scipy import special  # slow to import, like pandas; a command without a report does not

    half = np.asarray(df, float) / 2
    return special.digamma(half) - np.log(half)


def seed_prior(samples: Sequence[MetricSample]) -> SeedPrior:
    """The prior of the seed variances of comparisons (limma: Smyth, Stat. Appl. Genet. Mol. Biol.
    3, 2004), from the moments of the logarithms of seed variance / image variance.

    limma has thousands of genes, a report has seven comparisons. So the spread of the logarithms,
    which makes the prior weak, and their mean are raised by ``RAISED`` standard errors, and the
    prior is at most ``MOST_DF`` times as strong as a comparison's own seeds.
    """
    spreads = [
        (variance * scale / single, df)
        for sample in samples
        if sample.count > 1 and (single := sample.single_image_variance) > 0 and sample.varies
        for variance, df, scale in [sample.seed_noise]
    ]
    ratios, df = np.array([each for each in spreads if each[0] > 0]).reshape(-1, 2).T
    count = len(ratios)
    if count < MIN_COMPARISONS:
        return NO_PRIOR
    from scipy import special

    logs = np.log(ratios) - log_bias(df)
    variance = float(logs.var(ddof=1))
    excess = variance * (1 + RAISED * np.sqrt(2 / (count - 1)))
    excess -= float(special.polygamma(1, df / 2).mean())
    prior_df = most = MOST_DF * float(df.mean())
    if excess > 0:  # the inverse of ψ'(x) ≈ 1/x + 1/(2x²)
        prior_df = min(most, (1 + np.sqrt(1 + 2 * excess)) / excess)
    mean = logs.mean() + RAISED * np.sqrt(variance / count)
    ratio = np.exp(mean + log_bias(prior_df))
    return SeedPrior(float(ratio), float(prior_df))


def judge_jointly(
    estimates: Sequence[Any],
    weights: ArrayLike = 1.0,
    error_rate: float = LEVEL,
    parents: Sequence[int] = (),
) -> list[Any]:
    """The estimates at levels at which the probability of any false verdict is ``error_rate``.

    Weighted Holm (1979): the error rate is divided by the weights of what is not decided; what is
    decided passes its share on, until nothing more is. What waits for its parent has a share when
    that is decided, and else a level of 0 (Goeman and Solari, Ann. Stat. 38, 2010).

    Args:
        estimates: ``Estimate``, or what has its ``is_judged``, ``is_decided`` and ``level``.
        weights: positive; default: equal. Those that wait for a parent weigh together at most as
            much as it.
        parents: for each estimate the index of an earlier one that must be decided before, or -1;
            default: none.
    """
    is_judged = np.array([each.is_judged for each in estimates], bool)
    parent = np.asarray(parents or [-1] * len(estimates), int)
    for row in np.flatnonzero(parent >= 0):
        is_judged[row] &= is_judged[parent[row]]
    shares = is_judged * np.asarray(weights)
    levels, undecided = np.where(is_judged | (parent >= 0), 0.0, error_rate), is_judged.copy()
    while len(can_be := np.flatnonzero(undecided & ((parent < 0) | ~undecided[parent]))):
        levels[can_be] = error_rate * shares[can_be] / shares[can_be].sum()
        rows = [row for row in can_be if estimates[row].is_decided(levels[row])]
        if not rows:
            break
        undecided[rows] = False
    return [
        replace(e, level=float(level), has_verdict=bool(judged))
        for e, level, judged in zip(estimates, levels, is_judged, strict=True)
    ]


def spearman(x: pd.Series, y: pd.Series) -> tuple[float, float, float]:
    """Spearman's ρ over what both have, and the ends of its 95 % interval; NaN for four or fewer,
    and where one does not vary."""
    from scipy import special

    z = fisher_z(x, y)
    reach = special.ndtri(1 - LEVEL / 2) * np.sqrt(z.image_variance)
    rho, low, high = np.tanh([z.value, z.value - reach, z.value + reach]).tolist()
    return rho, low, high


def fisher_z(x: pd.Series, y: pd.Series) -> Estimate:
    """Fisher's z of Spearman's ρ over what both have; NaN as there.

    With the standard error of Bonett and Wright (Psychometrika 65, 2000).
    """
    import pandas as pd

    both = pd.concat([x, y], axis=1).dropna().rank()
    if len(both) <= 4 or (both.nunique() == 1).any():
        return Estimate(np.nan)
    rho = np.corrcoef(both.to_numpy().T)[0, 1]
    z = float(np.arctanh(np.clip(rho, -1 + 1e-12, 1 - 1e-12)))
    return Estimate(z, (1 + rho**2 / 2) / (len(both) - 3), images=len(both))
