"""Images and seeds resampled: what every interval of a report is computed from.

Images are drawn with replacement, and the metric is computed of each resample whole (mIoU from
summed areas, AP from pooled detections – never the mean of single images' scores). All backbones,
and all tasks on the same images, see the same resamples,
and a seed is the same seed for all of them: so a difference is *paired* in both.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

RESAMPLES = 1000
CELLS = 25_000_000  # of a block of resamples: memory


@dataclass(frozen=True)
class Sample:
    """A metric of one backbone in one column.

    Attributes:
        seeds: in order.
        values: (S,) the metric with each seed.
        resamples: (S, R) the same over each resample of images, or None where it cannot be known.
        images: how many images are resampled.
    """

    seeds: tuple[int, ...]
    values: np.ndarray
    resamples: np.ndarray | None = None
    images: int = 0

    def of(self, seeds: Sequence[int]) -> Sample:
        """The same with these seeds alone."""
        places = [self.seeds.index(seed) for seed in seeds]
        resamples = None if self.resamples is None else self.resamples[places]
        return Sample(tuple(seeds), self.values[places], resamples, self.images)

    def minus(self, other: Sample) -> Sample:
        """The difference seed by seed (both have the same) on the same resamples; without any where
        one side has none."""
        mine, theirs = self.resamples, other.resamples
        if mine is None or theirs is None or self.images != other.images:
            return Sample(self.seeds, self.values - other.values)
        count = min(mine.shape[1], theirs.shape[1])
        return Sample(
            self.seeds, self.values - other.values, mine[:, :count] - theirs[:, :count], self.images
        )

    def times(self, factor: float) -> Sample:
        """In another unit."""
        resamples = None if self.resamples is None else self.resamples * factor
        return Sample(self.seeds, self.values * factor, resamples, self.images)


@dataclass(frozen=True)
class Contrast:
    """What an interval is about: the sum of one or two samples. Each sample's seeds are independent
    of the other's.

    One sample is a number, or a difference whose two sides have seeds in common; two samples are a
    difference whose sides were made with other seeds, the second one negative.
    """

    samples: tuple[Sample, ...]

    @property
    def value(self) -> float:
        return float(sum(sample.values.mean() for sample in self.samples))

    @property
    def images(self) -> int:
        """How many are resampled; 0 where the noise of images is not known."""
        return min(s.images if s.resamples is not None else 0 for s in self.samples)

    @property
    def seeds(self) -> int:
        return min(len(sample.seeds) for sample in self.samples)

    @property
    def known(self) -> bool:
        """Whether anything is known of its noise."""
        return self.images > 1 or self.seeds > 1

    def deviations(self) -> np.ndarray | None:
        """(R,) what resampling the images adds to the value, scaled by √(N / (N − 1)) (the
        bootstrap's shortfall; Efron, Tibshirani 1993, section 5.3)."""
        if self.images < 2:
            return None
        found = [s.resamples.mean(axis=0) for s in self.samples if s.resamples is not None]
        count = min(map(len, found))
        total = np.sum([one[:count] for one in found], axis=0)
        return (total - self.value) * np.sqrt(self.images / (self.images - 1))

    def times(self, factor: float) -> Contrast:
        """In another unit."""
        return Contrast(tuple(sample.times(factor) for sample in self.samples))


def contrast(mine: Sample, other: Sample) -> Contrast:
    """``mine`` - ``other``: value and noise come from the same seeds.

    Seeds that both have are paired when there are several. Otherwise the sides are independent
    where each has several, and else compared at one seed (in common where there is one), whose
    noise is then not known.
    """
    shared = sorted(set(mine.seeds) & set(other.seeds))
    several = min(len(mine.seeds), len(other.seeds)) > 1
    if len(shared) > 1 or (shared and not several):
        return Contrast((mine.of(shared).minus(other.of(shared)),))
    one, two = mine, other.times(-1)
    if one.images != two.images:
        one, two = Sample(one.seeds, one.values), Sample(two.seeds, two.values)
    return Contrast((one, two))


def image_weights(images: Sequence[str], resamples: int = RESAMPLES) -> np.ndarray:
    """(R, N) float32: how often each image is in each resample. The same images give the same
    resamples."""
    seed = int.from_bytes(hashlib.sha256("\n".join(images).encode()).digest()[:8], "little")
    rng, count = np.random.default_rng(seed), len(images)
    weights = np.empty((resamples, count), np.float32)
    step = max(1, CELLS // max(count, 1))
    for start in range(0, resamples, step):
        rows = min(step, resamples - start)
        chosen = rng.integers(0, count, (rows, count)) + np.arange(rows)[:, None] * count
        weights[start : start + rows] = np.bincount(chosen.ravel(), minlength=rows * count).reshape(
            rows, count
        )
    return weights
