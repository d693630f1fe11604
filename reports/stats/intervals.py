"""Intervals over seeds × images, and verdicts that hold together.

The one procedure of reports, leaderboards and sweeps, for whatever is a ``MetricSample``: a number,
a difference, a mean gain, a score. docs/statistics.md explains it and has its simulations.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import ArrayLike
from scipy import special

from reports.stats.resampling import MetricSample

LEVEL = 0.05  # of every interval that is shown, and of all verdicts of a report together
MIN_IMAGES = 20  # images: with fewer, nothing is decided
MIN_SEEDS = 3  # seeds that differ: with two, nothing is decided
POWER = 0.8
MOST_SEEDS = 50  # that are ever recommended
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
        least, width: where the range of the number begins, and how wide it is; 0 if it is open, or
            the number is a difference.
        level: of its verdict; its interval always has ``LEVEL``.
        has_verdict: False for what is not to be judged, whatever its interval.
    """

    value: float
    image_variance: float = 0.0
    seed_variance: float = 0.0
    seed_df: float = 0.0
    seeds: int = 1
    images: int = 0
    least: float = 0.0
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
        """Whether there can be a verdict."""
        enough_seeds = self.seeds >= MIN_SEEDS or self.seed_df == 0
        enough_images = self.images >= MIN_IMAGES or self.images == 0
        return self.has_verdict and self.has_interval and enough_seeds and enough_images

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
        parts = [(self.image_variance, self.images - 1), (self.seed_variance, self.seed_df)]
        squares = [variance * student(df, level) for variance, df in parts if variance]
        if not self.has_interval:
            return np.nan
        return float(sum(squares) / np.sqrt(self.variance)) if squares else 0.0

    @property
    def interval(self) -> tuple[float, float]:
        """NaN if no noise is known. A bounded number has Wilson's interval with the effective size
        share · (1 - share) / variance (Franco et al., J. Survey Stat. Methodol. 7, 2019)."""
        reach, above = self.reach(), self.value - self.least
        if not (self.has_interval and self.width and 0 <= above <= self.width):
            return self.value - reach, self.value + reach
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
        return self.is_judged and abs(self.value) > self.reach(level)

    def verdict(self, sign: int = 1) -> str:
        """``win``, ``loss``, ``tie`` or ``unknown``.

        Args:
            sign: +1 where higher is better, else -1.
        """
        if not self.is_decided(self.level):
            return "tie" if self.is_judged else "unknown"
        return "win" if self.value * sign > 0 else "loss"

    def detectable(self) -> float:
        """The smallest difference that is decided with probability ``POWER``."""
        return self.reach(self.level) + float(special.ndtri(POWER) * np.sqrt(self.variance))

    def seeds_to_decide(self) -> int | None:
        """How many seeds decide a difference of this size; None for more than ``MOST_SEEDS``."""
        for seeds in range(max(self.seeds + 1, MIN_SEEDS), MOST_SEEDS + 1):
            variance, df = (
                self.seed_variance * self.seeds / seeds,
                self.seed_df + seeds - self.seeds,
            )
            if replace(self, seed_variance=variance, seed_df=df, seeds=seeds).is_decided(
                self.level
            ):
                return seeds
        return None


def student(df: float, level: float) -> float:
    """The two-sided quantile of Student's t."""
    return float(special.stdtrit(max(df, 1), 1 - level / 2))


def estimate(sample: MetricSample, prior: SeedPrior = NO_PRIOR, width: float = 0.0) -> Estimate:
    """The mean over seeds with its noise.

    The spread between seeds and the bootstrap of images both contain the interaction of the two; it
    is subtracted once from the bootstrap's.

    Args:
        width: of the range of an image's score, 0 if unknown. Where no image differs, one may.
    """
    count, images = len(sample.seeds), sample.images if sample.resamples is not None else 0
    image_variance, single = sample.variances
    noise = (image_variance or (width / max(images, 1)) ** 2 * (images > 0), 0.0, 0.0)
    if count > 1 and sample.varies:
        interaction = max(single - image_variance, 0.0) / (count - 1)
        own, df = float(sample.values.var(ddof=1)), count - 1
        weight = prior.df if single else 0.0
        variance = (weight * prior.ratio * single + df * own) / (weight + df)
        noise = (max(image_variance - interaction, 0.0), variance / count, weight + df)
    return Estimate(float(sample.values.mean()), *noise, seeds=count, images=images)


def seed_prior(samples: Sequence[MetricSample]) -> SeedPrior:
    """The prior of the seed variances of comparisons (limma: Smyth, Stat. Appl. Genet. Mol. Biol.
    3, 2004), from the moments of the logarithms of seed variance / image variance.

    limma has thousands of genes, a report has seven comparisons. So the spread of the logarithms,
    which makes the prior weak, and their mean are raised by ``RAISED`` standard errors, and the
    prior is at most ``MOST_DF`` times as strong as a comparison's own seeds.
    """
    spreads = [
        (float(sample.values.var(ddof=1)) / single, len(sample.seeds) - 1)
        for sample in samples
        if len(sample.seeds) > 1 and (single := sample.variances[1]) > 0 and sample.varies
    ]
    ratios, df = np.array([each for each in spreads if each[0] > 0]).reshape(-1, 2).T
    count = len(ratios)
    if count < MIN_COMPARISONS:
        return NO_PRIOR
    logs = np.log(ratios) - special.digamma(df / 2) + np.log(df / 2)
    variance = float(logs.var(ddof=1))
    excess = variance * (1 + RAISED * np.sqrt(2 / (count - 1)))
    excess -= float(special.polygamma(1, df / 2).mean())
    prior_df = most = MOST_DF * float(df.mean())
    if excess > 0:  # the inverse of ψ'(x) ≈ 1/x + 1/2x²
        prior_df = min(most, (1 + np.sqrt(1 + 2 * excess)) / excess)
    mean = logs.mean() + RAISED * np.sqrt(variance / count)
    ratio = np.exp(mean + special.digamma(prior_df / 2) - np.log(prior_df / 2))
    return SeedPrior(float(ratio), float(prior_df))


def judge_jointly(
    estimates: Sequence[Estimate], weights: ArrayLike = 1.0, error_rate: float = LEVEL
) -> list[Estimate]:
    """The estimates at levels at which the probability of any false verdict is ``error_rate``.

    Weighted Holm (1979): the error rate is divided by the weights of what is not decided; what is
    decided passes its share on, until nothing more is.

    Args:
        weights: positive; default: equal.
    """
    shares = np.array([float(each.is_judged) for each in estimates]) * np.asarray(weights)
    levels, undecided = np.full(len(estimates), error_rate), shares > 0
    while undecided.any():
        levels[undecided] = error_rate * shares[undecided] / shares[undecided].sum()
        decided = [e.is_decided(level) for e, level in zip(estimates, levels, strict=True)]
        if not (undecided & decided).any():
            break
        undecided &= ~np.array(decided)
    return [replace(e, level=float(level)) for e, level in zip(estimates, levels, strict=True)]
