"""Intervals over seeds × images, and the differences that they can detect.

The variance of a mean over S seeds on N images has three parts: what seeds share over images (σ_s²
/ S), what images share over seeds (σ_i² / N), and their interaction (σ_si² / SN). The spread
between seeds contains the first and the third, the bootstrap of images the second and the third; so
the third is subtracted once from the bootstrap's (the mean square of how each seed's resamples
deviate from the mean's). docs/statistics.md has the derivation and the coverage.
"""

from __future__ import annotations

import bisect
import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
from scipy import optimize, special

from reports.stats.resampling import MetricSample, Quantity
from reports.stats.seeds import NO_PRIOR, SeedPrior

LEVEL = 0.05
MIN_IMAGES = 20  # images: with fewer, nothing is decided
POWER = 0.8
MOST_SEEDS = 50  # that are ever recommended
MATCHED_LEVEL = 0.04  # level from which intervals match it; below, verdicts err on the safe side
NEGLIGIBLE = 1e-12  # share of the variance
MAX_NODES = 2000  # of the quadrature
SHARES = np.sin(np.linspace(0, np.pi / 2, 33)) ** 2  # of seeds; denser at the ends
FOR_INTERACTION = 200  # resamples that the interaction is estimated from

Formula = Callable[[np.ndarray], np.ndarray]  # (T, n) values of T quantities → (n,)


class Part(NamedTuple):
    """An independent part of the noise.

    Attributes:
        variance: of the value.
        df: degrees of freedom of that variance.
        seeds: number of seeds that it comes from; 0 for images.
    """

    variance: float
    df: float
    seeds: int = 0


@dataclass(frozen=True)
class Estimate:
    """A number with its noise.

    Attributes:
        value: mean over seeds.
        parts: of its noise; empty if unknown.
        level: probability that the interval misses.
        seeds: number of seeds.
        images: number of images whose noise is included; 0 if unknown.
        least, most: range of the number, which the interval does not leave.
    """

    value: float
    parts: tuple[Part, ...] = ()
    level: float = LEVEL
    seeds: int = 1
    images: int = 0
    least: float = -np.inf
    most: float = np.inf

    @property
    def has_interval(self) -> bool:
        return bool(self.parts)

    @property
    def reach(self) -> float:
        """Half of the interval's width before it is cut; NaN without an interval."""
        return half_width(self.parts, self.level) if self.parts else np.nan

    @property
    def low(self) -> float:
        return self._ends()[0]

    @property
    def high(self) -> float:
        return self._ends()[1]

    def _ends(self) -> tuple[float, float]:
        """The interval; Wilson's where the number is a share of a finite range."""
        if not self.parts:
            return np.nan, np.nan
        least, most = min(self.least, self.value), max(self.most, self.value)
        if not np.isfinite(most - least) or least == most:
            return max(self.value - self.reach, least), min(self.value + self.reach, most)
        variance = self.variance / (most - least) ** 2
        share = (self.value - least) / (most - least)
        if variance > 0:
            quantile = self.reach / (most - least) / np.sqrt(variance)
            size = share * (1 - share) / variance
        else:  # all images are right, or none
            quantile = float(special.stdtrit(max(self.images - 1, 1), 1 - self.level / 2))
            size = self.images if share in (0, 1) else np.inf
        low, high = wilson(share, size, quantile)
        return least + (most - least) * low, least + (most - least) * high

    @property
    def error(self) -> float:
        """Standard error over seeds; NaN with one seed."""
        variances = [part.variance for part in self.parts if part.seeds]
        return float(np.sqrt(np.sum(variances))) if variances else np.nan

    @property
    def variance(self) -> float:
        return sum(part.variance for part in self.parts)

    def times(self, factor: float) -> Estimate:
        """The same in another unit, without a range."""
        parts = tuple(part._replace(variance=part.variance * factor**2) for part in self.parts)
        return replace(self, value=self.value * factor, parts=parts, least=-np.inf, most=np.inf)

    def at(self, level: float) -> Estimate:
        """The same with an interval that misses with probability ``level``."""
        return replace(self, level=level)

    def verdict(self, sign: int = 1) -> str:
        """``win``, ``loss``, ``tie`` or ``unknown``.

        A difference counts if its interval excludes zero; without an interval, or on fewer than
        ``MIN_IMAGES`` images, it is unknown.

        Args:
            sign: +1 where higher is better, else -1.
        """
        if not self.parts or 0 < self.images < MIN_IMAGES:
            return "unknown"
        if abs(self.value) <= self.reach:
            return "tie"
        return "win" if self.value * sign > 0 else "loss"

    def detectable(self) -> float:
        """The smallest difference that is detected with probability ``POWER`` at this level."""
        return self.reach + float(special.ndtri(POWER) * np.sqrt(self.variance))

    def seeds_to_decide(self) -> int | None:
        """How many seeds decide a difference of this size; None for more than ``MOST_SEEDS``."""

        def decides(seeds: int) -> bool:
            parts = tuple(
                Part(part.variance * part.seeds / seeds, part.df + seeds - part.seeds, seeds)
                if part.seeds
                else part
                for part in self.parts
            )
            return half_width(parts, self.level) < abs(self.value)

        counts = range(self.seeds + 1, MOST_SEEDS + 1)
        first = bisect.bisect_left(counts, True, key=decides)
        return counts[first] if first < len(counts) else None


def wilson(share: float, size: float, quantile: float) -> tuple[float, float]:
    """Wilson's score interval of a share in [0, 1].

    With the effective size share · (1 - share) / variance it holds for any noise (Franco et al.,
    J. Survey Stat. Methodol. 7, 2019).

    Args:
        size: number of images that would have the variance if each was right or wrong.
    """
    shrunk = quantile**2 / size
    centre = (share + shrunk / 2) / (1 + shrunk)
    reach = np.sqrt(shrunk * share * (1 - share) + shrunk**2 / 4) / (1 + shrunk)
    return float(centre - reach), float(centre + reach)


@functools.lru_cache(maxsize=10_000)
def half_width(parts: tuple[Part, ...], level: float) -> float:
    """Half of the width of an interval that misses with probability ``level``.

    Each part of the noise is its standard error × Student's t. Their sum has the distribution of
    Behrens (1929) and Fisher (1935), by quadrature over each part's χ². Such an interval misses too
    rarely where seeds have few degrees of freedom. So from ``MATCHED_LEVEL`` on, a part of seeds
    with d degrees of freedom and the share w of the variance gets d + 2 of them with this
    probability, which is right up to terms in 1/d² (docs/statistics.md derives it)::

        1 - w (1 + 1/d)
    """
    total = sum(part.variance for part in parts)
    if total == 0:
        return 0.0
    positive = [part for part in parts if part.variance > NEGLIGIBLE * total]
    if len(positive) == 1:
        ((variance, df, _),) = positive
        return float(np.sqrt(variance) * special.stdtrit(df, 1 - level / 2))
    variances: np.ndarray = np.zeros(1)
    weights: np.ndarray = np.ones(1)
    for part in positive:
        mixed = 0.0
        if level >= MATCHED_LEVEL and part.seeds:
            mixed = max(1 - part.variance / total * (1 + 1 / part.df), 0.0)
        inflation, weight = _inverse_chi_square(part.df, part.df)
        if mixed > 0:
            more, more_weight = _inverse_chi_square(part.df, part.df + 2)
            inflation = np.append(inflation, more)
            weight = np.append((1 - mixed) * weight, mixed * more_weight)
        variances = np.add.outer(variances, part.variance * inflation).ravel()
        weights = np.multiply.outer(weights, weight).ravel()
        if len(variances) > MAX_NODES:
            order = np.argsort(variances)
            starts = np.arange(0, len(order), -(-len(order) // MAX_NODES))
            merged = np.add.reduceat(weights[order], starts)
            variances = np.add.reduceat((weights * variances)[order], starts) / merged
            weights = merged
    deviations = np.sqrt(variances)

    def excess(width: float) -> float:
        return 2 * float(weights @ special.ndtr(-width / deviations)) - level

    least = np.sqrt(total) * special.ndtri(1 - level / 2)
    most = 2 * least
    while excess(most) > 0:
        most *= 2
    return float(optimize.brentq(excess, least / 4, most, rtol=1e-6))


def half_widths(
    images: np.ndarray, images_df: int, seeds: np.ndarray, seeds_df: int, level: float
) -> np.ndarray:
    """``half_width`` of many intervals at once, from the variances of images and of seeds.

    It is computed at some shares of seeds in the variance, and interpolated between them.
    """
    total = images + seeds
    nodes = [
        half_width((Part(1 - share, max(images_df, 1)), Part(share, max(seeds_df, 1), 2)), level)
        for share in SHARES
    ]
    share = np.divide(seeds, total, out=np.zeros_like(total), where=total > 0)
    return np.exp(np.interp(share, SHARES, np.log(nodes))) * np.sqrt(total)


def variances_of_differences(deviations: np.ndarray) -> np.ndarray:
    """(T, T) variance over resamples of the difference of each two of (T, R) quantities."""
    covariance = np.atleast_2d(np.cov(deviations))
    own = np.diag(covariance)
    return np.maximum(own[:, None] + own[None] - 2 * covariance, 0.0)


@functools.lru_cache(maxsize=256)
def _inverse_chi_square(scale: float, df: float) -> tuple[np.ndarray, np.ndarray]:
    """Nodes of scale / χ² and weights, by the trapezoid rule over the logit of probability."""
    probability = special.expit(np.arange(-20, 12, 0.75))
    weights = probability * (1 - probability)
    return scale / (2 * special.gammaincinv(df / 2, probability)), weights / weights.sum()


def estimate(quantity: Quantity, prior: SeedPrior = NO_PRIOR) -> Estimate:
    """A quantity with its interval.

    Args:
        prior: of its seed variance.
    """
    plain = combine([quantity])
    scale = quantity.image_variance / len(quantity.samples)
    if not quantity.varies or scale == 0:
        return plain
    parts = []
    for part in plain.parts:
        if part.seeds:
            variance, df = prior.moderate(part.variance * part.seeds, part.df, scale)
            part = Part(variance / part.seeds, df, part.seeds)
        parts.append(part)
    return replace(plain, parts=tuple(parts))


def combine(
    quantities: Sequence[Quantity],
    formula: Formula = lambda values: values[0],
    around: np.ndarray | None = None,
) -> Estimate:
    """``formula`` of quantities, with the noise of seeds and images that they share.

    A quantity without resamples, or with one seed, contributes nothing to that noise; values that
    are equal with all seeds, without resamples, have none that is known.

    Args:
        around: (T,) values of the quantities at which noise is evaluated; default: their own.
    """
    means = np.array([[quantity.value] for quantity in quantities])
    value = float(formula(means)[0])
    means = means if around is None else around[:, None]
    parts, interaction = [], 0.0
    for group in _groups(quantities):
        part, shared = _of_seeds(group, means, formula)
        parts.append(part)
        interaction += shared
    images = min((quantity.images for quantity in quantities if quantity.images > 1), default=0)
    if images:
        variance = float(np.nanvar(formula(means + deviations(quantities)), ddof=1))
        parts.insert(0, Part(max(variance - interaction, 0.0), images - 1))
    elif not any(quantity.varies for quantity in quantities):
        parts = []  # equal values are no evidence that there is no noise
    seeds = min(quantity.seeds for quantity in quantities)
    return Estimate(value, tuple(parts), seeds=seeds, images=images)


def deviations(quantities: Sequence[Quantity]) -> np.ndarray:
    """(T, R) what each resample of images adds; 0 for quantities without resamples."""
    every = [quantity.deviations() for quantity in quantities]
    count = min(len(each) for each in every if each is not None)
    return np.stack([np.zeros(count) if each is None else each[:count] for each in every])


def _groups(quantities: Sequence[Quantity]) -> list[dict[int, MetricSample]]:
    """Groups of samples that share their seeds, by the index of their quantity.

    Paired samples are one group, and each side of unpaired ones.
    """
    groups: dict[tuple[int, int], dict[int, MetricSample]] = {}
    for index, quantity in enumerate(quantities):
        if quantity.seeds > 1:
            for side, sample in enumerate(quantity.samples):
                groups.setdefault((len(quantity.samples), side), {})[index] = sample
    return list(groups.values())


def _of_seeds(
    group: dict[int, MetricSample], means: np.ndarray, formula: Formula
) -> tuple[Part, float]:
    """The noise of a group's seeds, and its part that the noise of images contains, too.

    Each seed moves all quantities that it is in at once. Where seeds are missing in a quantity, the
    deviations of the others are enlarged so that it has its own variance.
    """
    value = float(formula(means)[0])
    seeds = sorted(set().union(*(sample.seeds for sample in group.values())))
    count = len(seeds)
    widths = [s.resamples.shape[1] for s in group.values() if s.resamples is not None]
    width = min([FOR_INTERACTION, *widths]) if widths else 0
    shift = np.zeros((len(means), count))
    both = np.zeros((len(means), count, width))
    for index, sample in group.items():
        own = len(sample.seeds)
        scale = np.sqrt(count * (count - 1) / (own * (own - 1)))
        columns = [seeds.index(seed) for seed in sample.seeds]
        shift[index, columns] = scale * (sample.values - sample.values.mean())
        if sample.resamples is not None:
            departs = sample.resamples[:, :width] - sample.values[:, None]
            both[index, columns] = scale * (departs - departs.mean(axis=0))
    spread = float(np.sum((formula(means + shift) - value) ** 2)) / (count * (count - 1))
    shared = 0.0
    if width:
        values = formula(means + both.reshape(len(means), -1)).reshape(count, width)
        shared = float(np.sum(np.nanmean((values - value) ** 2, axis=1))) / (count * (count - 1))
    fewest = min(len(sample.seeds) for sample in group.values())
    return Part(spread, fewest - 1, count), shared
