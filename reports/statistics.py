"""What can be believed: intervals from images and seeds, paired differences, mean relative gain, mean rank.

Two things are random: which images the validation set holds, and the seed of training and probing.

* **Images**: the bootstrap (Efron, Tibshirani 1993, chapter 6): draw as many images as there are with replacement, compute
  the metric of the whole draw (mIoU from summed areas, AP from pooled detections – never the mean of single images' scores),
  take the spread over draws. All backbones and all tasks on the same images see the same draws, so that differences are
  *paired*. Deviations are scaled by √(N / (N − 1)), the bootstrap's known shortfall (same place, section 5.3).
* **Seeds**: the mean over S seeds is off by (s / √S) · t with S − 1 degrees of freedom (Student 1908).
* **Both**: the two errors are independent and add: the distribution of their sum (the Behrens–Fisher construction; Fisher
  1935) gives the interval. Where seeds are equal on both sides of a difference, seeds are paired as well.

With a single seed an interval speaks of images alone: of these very weights, not of the recipe that made them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy import stats

DRAWS = 1000
LEVEL = 0.95
CELLS = 25_000_000  # of a block of draws: memory


@dataclass(frozen=True)
class Estimate:
    """A number with what is known about it.

    Attributes:
        value: mean over seeds.
        low, high: ends of the 95 % interval; NaN where nothing is known about the spread.
        error: standard error over seeds; NaN with one seed.
        seeds: how many.
        images: whether the interval holds the noise of images (it holds that of seeds when there are several).
    """

    value: float
    low: float = float("nan")
    high: float = float("nan")
    error: float = float("nan")
    seeds: int = 1
    images: bool = False

    @property
    def known(self) -> bool:
        """Whether there is an interval."""
        return bool(np.isfinite(self.low) and np.isfinite(self.high))

    def within(self, least: float, most: float) -> Estimate:
        """The same with its interval cut to what the number can be."""
        return (
            replace(self, low=max(self.low, min(least, self.value)), high=min(self.high, max(most, self.value)))
            if self.known
            else self
        )

    def verdict(self, sign: int = 1) -> str:
        """``win``, ``loss`` or ``tie``: a difference counts only when its interval leaves out zero; ``unknown`` without one.

        Args:
            sign: +1 where more is better, else -1.
        """
        if not self.known:
            return "unknown"
        if sign < 0:
            return {"win": "loss", "loss": "win"}.get(self.verdict(), "tie")
        return "win" if self.low > 0 else "loss" if self.high < 0 else "tie"


@dataclass(frozen=True)
class Sample:
    """A metric of one backbone in one column.

    Attributes:
        seeds: in order.
        values: (S,) the metric with each seed.
        draws: (S, R) the same over each draw of images, or None where it cannot be known.
    """

    seeds: tuple[int, ...]
    values: np.ndarray
    draws: np.ndarray | None = None


def image_draws(images: Sequence[str], draws: int = DRAWS) -> np.ndarray:
    """(draws, N) float32: how often each image is in each draw with replacement. The same images give the same draws."""
    seed = int.from_bytes(hashlib.sha256("\n".join(images).encode()).digest()[:8], "little")
    rng, count = np.random.default_rng(seed), len(images)
    weights = np.empty((draws, count), np.float32)
    step = max(1, CELLS // max(count, 1))
    for start in range(0, draws, step):
        rows = min(step, draws - start)
        chosen = rng.integers(0, count, (rows, count)) + np.arange(rows)[:, None] * count
        weights[start : start + rows] = np.bincount(chosen.ravel(), minlength=rows * count).reshape(rows, count)
    return weights


def enlarged(draws: np.ndarray, centre: float, images: int) -> np.ndarray:
    """Draws with their deviation from ``centre`` scaled by √(N / (N − 1))."""
    return centre + (draws - centre) * np.sqrt(images / max(images - 1, 1))


def estimate(sample: Sample) -> Estimate:
    """Mean over seeds with its interval."""
    return _combine(sample.values, sample.draws, [sample.values])


def difference(mine: Sample, other: Sample) -> Estimate:
    """``mine`` - ``other`` on the same draws of images; paired by seed where both have the same seeds."""
    draws = _mean_draws(mine.draws, other.draws, lambda a, b: a.mean(axis=0) - b.mean(axis=0))
    if mine.seeds == other.seeds:
        return _combine(mine.values - other.values, draws, [mine.values - other.values])
    gap = np.array([mine.values.mean() - other.values.mean()])
    several = [values for values in (mine.values, other.values) if len(values) > 1]
    return _combine(gap, draws, several)


def relative_gain(mine: Sequence[Sample], base: Sequence[Sample], signs: Sequence[int]) -> Estimate:
    """Mean over tasks of the change relative to the baseline, in percent, so that more is better.

    Δ = 100 / T · Σ sign_t · (m_t − b_t) / |b_t| (Maninis, Radosavovic, Kokkinos, CVPR 2019, equation 4).

    Args:
        mine, base: a sample for each task, in the same order; the base must be well away from zero (see ``has_ratio``).
    """
    return _over_tasks(
        [(m, b) for m, b in zip(mine, base, strict=True)],
        lambda pairs: np.mean(
            [100 * sign * (m - b) / np.abs(b) for (m, b), sign in zip(pairs, signs, strict=True)], axis=0
        ),
    )


def has_ratio(base: Estimate) -> bool:
    """Whether a change relative to ``base`` means anything: its whole interval is on one side of zero (Fieller's condition)."""
    if not np.isfinite(base.value) or base.value == 0:
        return False
    return not base.known or base.low > 0 or base.high < 0


def mean_ranks(samples: Mapping[str, Sequence[Sample]], signs: Sequence[int]) -> dict[str, Estimate]:
    """Backbone → its mean rank over tasks (1 = best; ties share), with interval.

    Args:
        samples: backbone → a sample for each task, in the same order; no holes.
    """
    names = list(samples)

    def ranks(columns: Sequence[tuple[np.ndarray, ...]]) -> np.ndarray:
        each = [stats.rankdata(-sign * np.stack(c), axis=0) for c, sign in zip(columns, signs, strict=True)]
        return np.mean(each, axis=0)  # (backbones, S or R)

    columns = list(zip(*(samples[name] for name in names), strict=True))
    return {
        name: _over_tasks(columns, lambda values, place=place: ranks(values)[place]) for place, name in enumerate(names)
    }


def _over_tasks(columns: Sequence[tuple[Sample, ...]], formula) -> Estimate:
    """``formula`` of all tasks at once, over draws of images of the seeds' means, and over seeds.

    Seeds that all samples share are paired. Without several of those each side's own seeds are taken by themselves, the other
    side at its mean. A task of which one side has no draws adds no noise of images: half of a pair would be too much.
    """
    means = [tuple(np.array([s.values.mean()]) for s in column) for column in columns]
    value = formula(means)
    sides = range(len(columns[0]))
    seeds = _shared_seeds(sample for column in columns for sample in column)
    spread: list[np.ndarray] = []
    if len(seeds) > 1:
        spread.append(formula([tuple(_of_seeds(s, seeds) for s in column) for column in columns]))
    else:
        for side in sides:
            own = _shared_seeds(column[side] for column in columns)
            if len(own) > 1:
                spread.append(
                    formula(
                        [
                            tuple(
                                _of_seeds(s, own) if place == side else np.full(len(own), s.values.mean())
                                for place, s in enumerate(column)
                            )
                            for column in columns
                        ]
                    )
                )
    drawn = [[s.draws for s in column if s.draws is not None] for column in columns]
    sizes = [one.shape[1] for found in drawn if len(found) == len(sides) for one in found]
    draws = None
    if sizes:
        count = min(sizes)
        draws = formula(
            [
                tuple(one[:, :count].mean(axis=0) for one in found)
                if len(found) == len(sides)
                else tuple(np.full(count, s.values.mean()) for s in column)
                for column, found in zip(columns, drawn, strict=True)
            ]
        )
    return _combine(value, None if draws is None else draws[None], spread)


def _shared_seeds(samples: Iterable[Sample]) -> list[int]:
    """Seeds that all have, in order."""
    return sorted(set.intersection(*(set(sample.seeds) for sample in samples)))


def _of_seeds(sample: Sample, seeds: Sequence[int]) -> np.ndarray:
    return np.array([sample.values[sample.seeds.index(seed)] for seed in seeds])


def _mean_draws(a: np.ndarray | None, b: np.ndarray | None, formula) -> np.ndarray | None:
    if a is None or b is None:
        return None
    count = min(a.shape[1], b.shape[1])
    return formula(a[:, :count], b[:, :count])[None]


def _combine(values: np.ndarray, draws: np.ndarray | None, seeds: Sequence[np.ndarray]) -> Estimate:
    """The interval of the mean of ``values`` from image draws (S, R) and from each independent set of seeds' values."""
    centre = float(np.mean(values))
    several = [v for v in seeds if len(v) > 1]
    errors = [float(np.std(v, ddof=1) / np.sqrt(len(v))) for v in several]
    error = float(np.sqrt(np.sum(np.square(errors)))) if errors else float("nan")
    count = len(several[0]) if several else 1
    tail = (1 - LEVEL) / 2
    if draws is not None:
        drawn = draws.mean(axis=0)
        drawn = drawn[np.isfinite(drawn)]
        if len(drawn) < 20:
            draws = None
    if draws is None and not several:
        return Estimate(centre, error=error, seeds=count)
    if draws is None and len(several) == 1:
        reach = errors[0] * float(stats.t.ppf(1 - tail, count - 1))
        return Estimate(centre, centre - reach, centre + reach, error, count)
    rng = np.random.default_rng(0)
    size = DRAWS if draws is None else len(drawn)
    noise = np.zeros(size) if draws is None else drawn - centre
    for v, own in zip(several, errors, strict=True):
        if own > 0:  # every quantile of Student's t once, in random order: no luck of the draw in its tails
            noise = noise + own * rng.permutation(stats.t.ppf((np.arange(size) + 0.5) / size, len(v) - 1))
    low, high = np.quantile(noise, (tail, 1 - tail))
    return Estimate(centre, centre + float(low), centre + float(high), error, count, draws is not None)
