"""Intervals over seeds × images, and verdicts that hold together.

The one procedure of reports, leaderboards and sweeps, for whatever is a ``MetricSample``: a number,
a difference, a mean gain, a score. docs/statistics.md explains it and has its simulations.
"""

from __future__ import annotations

import bisect
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy import optimize, special

from reports.stats.resampling import MetricSample

LEVEL = 0.05  # of every interval that is shown, and of all verdicts of a report together
MIN_IMAGES = 20  # images: with fewer, nothing is decided
MIN_SEEDS = 3  # seeds that differ: with two, nothing is decided
POWER = 0.8
MOST_SEEDS = 50  # that are ever recommended
MOST_DF = 4  # degrees of freedom of a prior, per degree of a comparison
MIN_COMPARISONS = 3  # that make a prior
SPREAD_ERRORS, MEAN_ERRORS = 1.5, 0.5  # standard errors by which a prior's moments are raised


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
        least, most: range of the number.
        sides: the two numbers that it is the difference of, whose ranges bound it.
        level: of its verdict; its interval always has ``LEVEL``.
        has_verdict: False for what is not to be judged, whatever its interval.
    """

    value: float
    image_variance: float = 0.0
    seed_variance: float = 0.0
    seed_df: float = 0.0
    seeds: int = 1
    images: int = 0
    least: float = -np.inf
    most: float = np.inf
    sides: tuple[Estimate, ...] = ()
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
        """Whether there can be a verdict."""
        enough_seeds = self.seeds >= MIN_SEEDS or self.seed_df == 0
        enough_images = self.images >= MIN_IMAGES or self.images == 0
        return self.has_verdict and self.has_interval and enough_seeds and enough_images

    @property
    def error(self) -> float:
        """Standard error over seeds; NaN without."""
        return float(np.sqrt(self.seed_variance)) if self.seed_df else np.nan

    @property
    def low(self) -> float:
        return self.interval()[0]

    @property
    def high(self) -> float:
        return self.interval()[1]

    @property
    def reach(self) -> float:
        """Half of the interval's width, apart from bounds; NaN without an interval."""
        return self.half_width(LEVEL) if self.has_interval else np.nan

    def half_width(self, level: float) -> float:
        """Of an interval that misses with probability ``level``: the standard error times the mean
        of both parts' Student quantiles, weighted by their variances (Cochran 1964)."""
        if self.variance == 0:
            return 0.0
        of_seeds = student(self.seed_df, level) * self.seed_variance if self.seed_df else 0.0
        of_images = student(self.images - 1, level) * self.image_variance if self.images else 0.0
        return float((of_seeds + of_images) / np.sqrt(self.variance))

    def interval(self, level: float = LEVEL) -> tuple[float, float]:
        """NaN if no noise is known. A bounded number has Wilson's interval; its difference to
        another one combines theirs (Newcombe 1998; Zou, Donner 2008)."""
        if not self.has_interval:
            return np.nan, np.nan
        half = self.half_width(level)
        quantile = student(self.images - 1, level) if self.images > 1 else 0.0
        quantile = half / np.sqrt(self.variance) if self.variance else quantile
        if not self.sides:
            below, above = self.wilson_arms(quantile)
            return self.value - below, self.value + above
        mine, base = self.sides
        product = np.sqrt(mine.variance * base.variance)
        shared = (mine.variance + base.variance - self.variance) / 2
        correlation = float(np.clip(shared / product, -1, 1)) if product else 0.0
        plain = quantile**2 * (mine.variance + base.variance - 2 * correlation * product)
        scale = half / np.sqrt(plain) if plain > 0 and half else 1.0  # 1 but for moderation
        (below, above), (base_below, base_above) = (s.wilson_arms(quantile) for s in self.sides)
        ends = []
        for first, second in ((below, base_above), (above, base_below)):
            square = first**2 + second**2 - 2 * correlation * first * second
            ends.append(scale * np.sqrt(max(square, 0.0)))
        return self.value - ends[0], self.value + ends[1]

    def wilson_arms(self, quantile: float) -> tuple[float, float]:
        """How far the interval reaches below and above the number.

        Wilson's with the effective size share · (1 - share) / variance holds for any noise of a
        bounded number (Franco et al., J. Survey Stat. Methodol. 7, 2019).
        """
        least, most = min(self.least, self.value), max(self.most, self.value)
        width, half = most - least, quantile * np.sqrt(self.variance)
        if not np.isfinite(width) or width == 0:
            return half, half
        share = (self.value - least) / width
        if self.variance:
            shrunk = half**2 / width**2 / (share * (1 - share)) if 0 < share < 1 else np.inf
        else:  # all images are right, or none
            shrunk = quantile**2 / self.images if share in (0, 1) and self.images else 0.0
        if not np.isfinite(shrunk):
            return min(half, self.value - least), min(half, most - self.value)
        centre = (share + shrunk / 2) / (1 + shrunk)
        reach = np.sqrt(shrunk * share * (1 - share) + shrunk**2 / 4) / (1 + shrunk)
        return width * (share - centre + reach), width * (centre + reach - share)

    def times(self, factor: float) -> Estimate:
        """The same in another unit."""
        least, most = sorted((self.least * factor, self.most * factor))
        square = factor**2
        return replace(
            self,
            value=self.value * factor,
            image_variance=self.image_variance * square,
            seed_variance=self.seed_variance * square,
            least=least,
            most=most,
            sides=tuple(side.times(factor) for side in self.sides),
        )

    def at(self, level: float) -> Estimate:
        """The same with a verdict at ``level``."""
        return replace(self, level=level)

    def excludes_zero(self, level: float) -> bool:
        low, high = self.interval(level)
        return low > 0 or high < 0

    def verdict(self, sign: int = 1) -> str:
        """``win``, ``loss``, ``tie`` or ``unknown``.

        Args:
            sign: +1 where higher is better, else -1.
        """
        if not self.is_judged:
            return "unknown"
        if not self.excludes_zero(self.level):
            return "tie"
        return "win" if self.value * sign > 0 else "loss"

    def detectable(self) -> float:
        """The smallest difference that is decided with probability ``POWER``."""
        return self.half_width(self.level) + float(special.ndtri(POWER) * np.sqrt(self.variance))

    def seeds_to_decide(self) -> int | None:
        """How many seeds decide a difference of this size; None for more than ``MOST_SEEDS``."""

        def decides(seeds: int) -> bool:
            variance = self.seed_variance * self.seeds / seeds
            more = replace(
                self,
                seed_variance=variance,
                seed_df=self.seed_df + seeds - self.seeds,
                seeds=seeds,
            )
            return more.half_width(self.level) < abs(self.value)

        counts = range(max(self.seeds + 1, MIN_SEEDS), MOST_SEEDS + 1)
        first = bisect.bisect_left(counts, True, key=decides)
        return counts[first] if first < len(counts) else None


def student(df: float, level: float) -> float:
    """The two-sided quantile of Student's t."""
    return float(special.stdtrit(max(df, 1), 1 - level / 2))


def estimate(
    sample: MetricSample, prior: SeedPrior = NO_PRIOR, sides: Sequence[Estimate] = ()
) -> Estimate:
    """The mean over seeds with its noise.

    The spread between seeds and the bootstrap of images both contain the interaction of the two; it
    is subtracted once from the bootstrap's.
    """
    count, images = len(sample.seeds), sample.images if sample.resamples is not None else 0
    image_variance, single = sample.variances()
    noise = (image_variance, 0.0, 0.0)
    if count > 1 and sample.varies:
        interaction = max(single - image_variance, 0.0) / (count - 1)
        own, df = float(sample.values.var(ddof=1)), count - 1
        weight = prior.df if single else 0.0
        variance = (weight * prior.ratio * single + df * own) / (weight + df)
        noise = (max(image_variance - interaction, 0.0), variance / count, weight + df)
    return Estimate(
        float(sample.values.mean()), *noise, seeds=count, images=images, sides=tuple(sides)
    )


def seed_prior(samples: Sequence[MetricSample], independent: int = 0) -> SeedPrior:
    """The prior of the seed variances of comparisons (limma: Smyth, Stat. Appl. Genet. Mol. Biol.
    3, 2004), from the moments of the logarithms of seed variance / image variance.

    limma has thousands of genes, a report has seven comparisons. So the spread of the logarithms,
    which makes the prior weak, and their mean are raised by some of their standard errors, and the
    prior is at most ``MOST_DF`` times as strong as a comparison's own seeds.

    Args:
        independent: how many of the samples are; default: all.
    """
    spreads = [
        (float(sample.values.var(ddof=1)) / single, len(sample.seeds) - 1)
        for sample in samples
        if len(sample.seeds) > 1 and (single := sample.variances()[1]) > 0 and sample.varies
    ]
    ratios, df = np.array([each for each in spreads if each[0] > 0]).reshape(-1, 2).T
    count = min(len(ratios), independent or len(ratios))
    if count < MIN_COMPARISONS:
        return NO_PRIOR
    logs = np.log(ratios) - special.digamma(df / 2) + np.log(df / 2)
    variance = float(logs.var(ddof=1))
    excess = variance * (1 + SPREAD_ERRORS * np.sqrt(2 / (count - 1)))
    excess -= float(special.polygamma(1, df / 2).mean())
    most = MOST_DF * float(df.mean())
    prior_df = min(most, 2 * inverse_trigamma(excess)) if excess > 0 else most
    mean = logs.mean() + MEAN_ERRORS * np.sqrt(variance / count)
    ratio = np.exp(mean + special.digamma(prior_df / 2) - np.log(prior_df / 2))
    return SeedPrior(float(ratio), float(prior_df))


def inverse_trigamma(value: float) -> float:
    """x > 0 with ψ'(x) = value > 0."""
    ends = 0.25 / np.sqrt(1 + value), 2 + 2 / value
    return float(optimize.brentq(lambda x: special.polygamma(1, x) - value, *ends))


def judge_jointly(
    estimates: Sequence[Estimate], weights: Sequence[float] = (), error_rate: float = LEVEL
) -> list[Estimate]:
    """The estimates at levels at which the probability of any false verdict is ``error_rate``.

    Weighted Holm (1979): the error rate is divided by the weights of what is not decided; what is
    decided passes its share on, until nothing more is.

    Args:
        weights: positive; default: equal.
    """
    shares = np.array([float(each.is_judged) for each in estimates])
    shares *= np.asarray(weights if len(weights) else 1.0)
    levels = np.full(len(estimates), error_rate)
    undecided = shares > 0
    while undecided.any():
        levels[undecided] = error_rate * shares[undecided] / shares[undecided].sum()
        decided = [
            index
            for index in np.flatnonzero(undecided)
            if estimates[index].excludes_zero(levels[index])
        ]
        if not decided:
            break
        undecided[decided] = False
    return [replace(e, level=float(level)) for e, level in zip(estimates, levels, strict=True)]
