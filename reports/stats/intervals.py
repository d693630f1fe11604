"""Intervals over seeds × images, and what they can tell apart.

The variance of a mean over S seeds on N images has three parts: what seeds share over images (σ_s²
/ S), what images share over seeds (σ_i² / N), and what is of one seed on one image (σ_si² / SN).
The spread between seeds holds the first and the third, the bootstrap of images the second and the
third; so the third is taken once from the bootstrap's (the mean square of how each seed's resamples
depart from the mean's). docs/statistics.md has the derivation, and how often the intervals cover.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
from scipy import special

from reports.stats.resampling import Contrast, Sample

LEVEL = 0.05
FEW = 20  # images: below, nothing is decided
POWER = 0.8
MOST_SEEDS = 50  # more are not asked for
FOR_INTERACTION = 200  # resamples are enough for it

Formula = Callable[[np.ndarray], np.ndarray]  # (T, n) values of T contrasts → (n,)


class Part(NamedTuple):
    """An independent part of the noise.

    Attributes:
        variance: of the value.
        df: degrees of freedom of that variance.
        seeds: of the seeds it comes from; 0 for images.
    """

    variance: float
    df: float
    seeds: int = 0


@dataclass(frozen=True)
class Estimate:
    """A number with what is known about it.

    Attributes:
        value: mean over seeds.
        parts: of its noise; none where nothing is known.
        level: how often the interval may miss.
        seeds: how many.
        images: how many images' noise is in it; 0 where that is not known.
        least, most: what the number can be: the interval is cut there.
    """

    value: float
    parts: tuple[Part, ...] = ()
    level: float = LEVEL
    seeds: int = 1
    images: int = 0
    least: float = -np.inf
    most: float = np.inf

    @property
    def known(self) -> bool:
        """Whether there is an interval."""
        return bool(self.parts)

    @property
    def reach(self) -> float:
        """Half of the interval's width, before it is cut."""
        return half_width(self.parts, self.level) if self.parts else np.nan

    @property
    def low(self) -> float:
        return max(self.value - self.reach, min(self.least, self.value)) if self.known else np.nan

    @property
    def high(self) -> float:
        return min(self.value + self.reach, max(self.most, self.value)) if self.known else np.nan

    @property
    def error(self) -> float:
        """Standard error over seeds; NaN with one seed."""
        found = [part.variance for part in self.parts if part.seeds]
        return float(np.sqrt(np.sum(found))) if found else np.nan

    def at(self, level: float) -> Estimate:
        """The same with an interval that misses with probability ``level``."""
        return replace(self, level=level)

    def verdict(self, sign: int = 1) -> str:
        """``win``, ``loss`` or ``tie``: a difference counts only when its interval leaves out zero;
        ``unknown`` without one, and on fewer than ``FEW`` images.

        Args:
            sign: +1 where more is better, else -1.
        """
        if not self.known or 0 < self.images < FEW:
            return "unknown"
        if abs(self.value) <= self.reach:
            return "tie"
        return "win" if self.value * sign > 0 else "loss"

    def detectable(self) -> float:
        """The smallest difference that is told from none with probability ``POWER``, with this
        noise at this level."""
        return self.reach + float(special.ndtri(POWER)) * float(
            np.sqrt(sum(part.variance for part in self.parts))
        )

    def seeds_to_decide(self) -> int | None:
        """How many seeds would decide a difference of this size; None where even ``MOST_SEEDS``
        would not."""
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
    too narrow, a little too wide where parts are alike) and Welch and Satterthwaite's degrees of
    freedom (too narrow far out, where a spread over few seeds is small by luck). At 5 % Welch
    counts by how much of the variance is not of the largest group of seeds; the smaller the level,
    the less.
    """
    found = [(part.variance, part.df) for part in parts if part.variance > 0]
    if not found:
        return 0.0
    variances, freedom = np.array(found).T
    total = variances.sum()
    safe = np.sqrt(np.sum(variances * special.stdtrit(freedom, 1 - level / 2) ** 2))
    welch = np.sqrt(total) * special.stdtrit(
        total**2 / np.sum(variances**2 / freedom), 1 - level / 2
    )
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

    A contrast without resamples, or with one seed, adds nothing of that noise; the others keep
    theirs.

    Args:
        around: (T,) values of the contrasts at which noise is looked at, where that matters for
            ``formula``; default: their own.
    """
    means = np.array([[one.value] for one in contrasts])
    value = float(formula(means)[0])
    means = means if around is None else around[:, None]
    parts, interaction = [], 0.0
    for group in _groups(contrasts):
        part, shared = _of_seeds(group, means, formula)
        parts.append(part)
        interaction += shared
    images = min((one.images for one in contrasts if one.images > 1), default=0)
    if images:
        variance = float(np.var(formula(means + deviations(contrasts)), ddof=1))
        parts.insert(0, Part(max(variance - interaction, 0.0), images - 1))
    return Estimate(value, tuple(parts), seeds=min(one.seeds for one in contrasts), images=images)


def deviations(contrasts: Sequence[Contrast]) -> np.ndarray:
    """(T, R) what each resample of images adds; 0 for contrasts without."""
    found = [one.deviations() for one in contrasts]
    count = min(len(one) for one in found if one is not None)
    return np.stack([np.zeros(count) if one is None else one[:count] for one in found])


def _groups(contrasts: Sequence[Contrast]) -> list[dict[int, Sample]]:
    """Samples with several seeds that are drawn together, by the place of their contrast: those
    that are paired, and each side of those that are not."""
    groups: dict[tuple[int, int], dict[int, Sample]] = {}
    for place, one in enumerate(contrasts):
        if one.seeds > 1:
            for side, sample in enumerate(one.samples):
                groups.setdefault((len(one.samples), side), {})[place] = sample
    return list(groups.values())


def _of_seeds(group: dict[int, Sample], means: np.ndarray, formula: Formula) -> tuple[Part, float]:
    """The noise of a group's seeds, and how much of it the images' noise holds, too.

    Each seed moves all contrasts that it is in at once. Where seeds are missing in some, the
    others' deviations are enlarged so that each contrast has the variance of its own.
    """
    value = float(formula(means)[0])
    seeds = sorted(set().union(*(sample.seeds for sample in group.values())))
    count = len(seeds)
    drawn = [s.resamples.shape[1] for s in group.values() if s.resamples is not None]
    width = min([FOR_INTERACTION, *drawn]) if drawn else 0
    moved = np.zeros((len(means), count))
    both = np.zeros((len(means), count, width))
    for place, sample in group.items():
        own = len(sample.seeds)
        scale = np.sqrt(count * (count - 1) / (own * (own - 1)))
        columns = [seeds.index(seed) for seed in sample.seeds]
        moved[place, columns] = scale * (sample.values - sample.values.mean())
        if sample.resamples is not None:
            departs = sample.resamples[:, :width] - sample.values[:, None]
            both[place, columns] = scale * (departs - departs.mean(axis=0))
    spread = float(np.sum((formula(means + moved) - value) ** 2)) / (count * (count - 1))
    shared = 0.0
    if width:
        found = formula(means + both.reshape(len(means), -1)).reshape(count, width)
        shared = float(np.sum(np.mean((found - value) ** 2, axis=1))) / (count * (count - 1))
    fewest = min(len(sample.seeds) for sample in group.values())
    return Part(spread, fewest - 1, count), shared
