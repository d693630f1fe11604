"""Intervals over seeds × images, and the differences that they can detect.

The variance of a mean over S seeds on N images has three parts: what seeds share over images (σ_s²
/ S), what images share over seeds (σ_i² / N), and their interaction (σ_si² / SN). The spread
between seeds contains the first and the third, the bootstrap of images the second and the third; so
the third is subtracted once from the bootstrap's (the mean square of how each seed's resamples
deviate from the mean's). docs/statistics.md has the derivation and the coverage.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
from scipy import special

from reports.stats.resampling import Contrast, Sample

LEVEL = 0.05
FEW = 20  # images: with fewer, nothing is decided
POWER = 0.8
MOST_SEEDS = 50  # that are ever recommended
FOR_INTERACTION = 200  # resamples that the interaction is estimated from

Formula = Callable[[np.ndarray], np.ndarray]  # (T, n) values of T contrasts → (n,)


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
        least, most: range of the number; the interval is cut there.
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
        if not self.parts:
            return np.nan
        return max(self.value - self.reach, min(self.least, self.value))

    @property
    def high(self) -> float:
        if not self.parts:
            return np.nan
        return min(self.value + self.reach, max(self.most, self.value))

    @property
    def error(self) -> float:
        """Standard error over seeds; NaN with one seed."""
        variances = [part.variance for part in self.parts if part.seeds]
        return float(np.sqrt(np.sum(variances))) if variances else np.nan

    def at(self, level: float) -> Estimate:
        """The same with an interval that misses with probability ``level``."""
        return replace(self, level=level)

    def verdict(self, sign: int = 1) -> str:
        """``win``, ``loss``, ``tie`` or ``unknown``.

        A difference counts if its interval excludes zero; without an interval, or on fewer than
        ``FEW`` images, it is unknown.

        Args:
            sign: +1 where higher is better, else -1.
        """
        if not self.parts or 0 < self.images < FEW:
            return "unknown"
        if abs(self.value) <= self.reach:
            return "tie"
        return "win" if self.value * sign > 0 else "loss"

    def detectable(self) -> float:
        """The smallest difference that is detected with probability ``POWER`` at this level."""
        variance = sum(part.variance for part in self.parts)
        return self.reach + float(special.ndtri(POWER)) * float(np.sqrt(variance))

    def seeds_to_decide(self) -> int | None:
        """How many seeds decide a difference of this size; None for more than ``MOST_SEEDS``."""
        for seeds in range(self.seeds + 1, MOST_SEEDS + 1):
            parts = [
                Part(part.variance * part.seeds / seeds, seeds - 1, seeds) if part.seeds else part
                for part in self.parts
            ]
            if half_width(parts, self.level) < abs(self.value):
                return seeds
        return None


def half_width(parts: Sequence[Part], level: float) -> float:
    """Half of the width of an interval that misses with probability ``level``.

    Between two bounds that are both exact for a single part: quantiles added in quadrature (never
    too narrow, a little too wide where parts are of similar size) and Welch and Satterthwaite's
    degrees of freedom (too narrow far out, where a spread over few seeds is small by chance). At
    level α Welch's bound has the weight min(20 α, 1) · w, where w is the share of the variance that
    is not of the largest group of seeds.
    """
    positive = [(part.variance, part.df) for part in parts if part.variance > 0]
    if not positive:
        return 0.0
    variances, freedom = np.array(positive).T
    total = variances.sum()
    safe = np.sqrt(np.sum(variances * special.stdtrit(freedom, 1 - level / 2) ** 2))
    welch_freedom = total**2 / np.sum(variances**2 / freedom)
    welch = np.sqrt(total) * special.stdtrit(welch_freedom, 1 - level / 2)
    largest = max((part.variance for part in parts if part.seeds), default=0.0)
    share = min(20 * level, 1.0) * (1 - largest / total)
    return float(share * welch + (1 - share) * safe)


def estimate(sample: Sample) -> Estimate:
    """Mean over seeds with its interval."""
    return combine([Contrast((sample,))])


def combine(
    contrasts: Sequence[Contrast],
    formula: Formula = lambda values: values[0],
    around: np.ndarray | None = None,
) -> Estimate:
    """``formula`` of contrasts, with the noise of seeds and images that they share.

    A contrast without resamples, or with one seed, contributes nothing to that noise.

    Args:
        around: (T,) values of the contrasts at which noise is evaluated; default: their own.
    """
    means = np.array([[contrast.value] for contrast in contrasts])
    value = float(formula(means)[0])
    means = means if around is None else around[:, None]
    parts, interaction = [], 0.0
    for group in _groups(contrasts):
        part, shared = _of_seeds(group, means, formula)
        parts.append(part)
        interaction += shared
    images = min((contrast.images for contrast in contrasts if contrast.images > 1), default=0)
    if images:
        variance = float(np.var(formula(means + deviations(contrasts)), ddof=1))
        parts.insert(0, Part(max(variance - interaction, 0.0), images - 1))
    seeds = min(contrast.seeds for contrast in contrasts)
    return Estimate(value, tuple(parts), seeds=seeds, images=images)


def deviations(contrasts: Sequence[Contrast]) -> np.ndarray:
    """(T, R) what each resample of images adds; 0 for contrasts without resamples."""
    every = [contrast.deviations() for contrast in contrasts]
    count = min(len(each) for each in every if each is not None)
    return np.stack([np.zeros(count) if each is None else each[:count] for each in every])


def _groups(contrasts: Sequence[Contrast]) -> list[dict[int, Sample]]:
    """Groups of samples that share their seeds, by the index of their contrast.

    Paired samples are one group, and each side of unpaired ones.
    """
    groups: dict[tuple[int, int], dict[int, Sample]] = {}
    for index, contrast in enumerate(contrasts):
        if contrast.seeds > 1:
            for side, sample in enumerate(contrast.samples):
                groups.setdefault((len(contrast.samples), side), {})[index] = sample
    return list(groups.values())


def _of_seeds(group: dict[int, Sample], means: np.ndarray, formula: Formula) -> tuple[Part, float]:
    """The noise of a group's seeds, and its part that the noise of images contains, too.

    Each seed moves all contrasts that it is in at once. Where seeds are missing in a contrast, the
    deviations of the others are enlarged so that it has its own variance.
    """
    value = float(formula(means)[0])
    seeds = sorted(set().union(*(sample.seeds for sample in group.values())))
    count = len(seeds)
    widths = [s.resamples.shape[1] for s in group.values() if s.resamples is not None]
    width = min([FOR_INTERACTION, *widths]) if widths else 0
    moved = np.zeros((len(means), count))
    both = np.zeros((len(means), count, width))
    for index, sample in group.items():
        own = len(sample.seeds)
        scale = np.sqrt(count * (count - 1) / (own * (own - 1)))
        columns = [seeds.index(seed) for seed in sample.seeds]
        moved[index, columns] = scale * (sample.values - sample.values.mean())
        if sample.resamples is not None:
            departs = sample.resamples[:, :width] - sample.values[:, None]
            both[index, columns] = scale * (departs - departs.mean(axis=0))
    spread = float(np.sum((formula(means + moved) - value) ** 2)) / (count * (count - 1))
    shared = 0.0
    if width:
        values = formula(means + both.reshape(len(means), -1)).reshape(count, width)
        shared = float(np.sum(np.mean((values - value) ** 2, axis=1))) / (count * (count - 1))
    fewest = min(len(sample.seeds) for sample in group.values())
    return Part(spread, fewest - 1, count), shared
