"""Images and seeds resampled: the basis of every interval of a report.

Images are drawn with replacement, and the metric is computed from each resample (mIoU from summed
areas, AP from pooled detections – never the mean of single images' scores). All backbones, and all
tasks on the same images, see the same resamples, and a seed is the same seed for all of them: so a
difference is *paired* in both.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from reports.stats.seeds import SeedNoise

RESAMPLES = 1000
BLOCK = 25_000_000  # weights in a block, which bounds the memory
ROUNDING = 1e-9  # relative


@dataclass(frozen=True)
class MetricSample:
    """A metric of one backbone in one column.

    Attributes:
        seeds: in order.
        values: (S,) the metric with each seed.
        resamples: (S, R) the same over each resample of images, or None if unknown; NaN where a
            resample has nothing to score.
        images: how many images are resampled.
    """

    seeds: tuple[int, ...]
    values: np.ndarray
    resamples: np.ndarray | None = None
    images: int = 0

    @property
    def varies(self) -> bool:
        """Whether its seeds differ by more than rounding, in the metric or over resamples."""
        rows = self.values[:, None]
        if self.resamples is not None:
            rows = np.hstack([rows, self.resamples[:, np.isfinite(self.resamples).all(axis=0)]])
        return bool(np.any(np.ptp(rows, axis=0) > ROUNDING * np.abs(rows).max()))

    def of(self, seeds: Sequence[int]) -> MetricSample:
        """The sample of these seeds alone."""
        rows = [self.seeds.index(seed) for seed in seeds]
        resamples = None if self.resamples is None else self.resamples[rows]
        return MetricSample(tuple(seeds), self.values[rows], resamples, self.images)

    def minus(self, base: MetricSample) -> MetricSample:
        """The difference to a sample of the same seeds, on the same resamples if both have them."""
        values = self.values - base.values
        if self.resamples is None or base.resamples is None or self.images != base.images:
            return MetricSample(self.seeds, values)
        count = min(self.resamples.shape[1], base.resamples.shape[1])
        resamples = self.resamples[:, :count] - base.resamples[:, :count]
        return MetricSample(self.seeds, values, resamples, self.images)

    def times(self, factor: float) -> MetricSample:
        """The sample in another unit."""
        resamples = None if self.resamples is None else self.resamples * factor
        return MetricSample(self.seeds, self.values * factor, resamples, self.images)


@dataclass(frozen=True)
class Quantity:
    """The subject of an interval: the sum of one or two samples with independent seeds.

    One sample is a number, or a difference whose two sides have seeds in common; two samples are a
    difference whose sides were made with different seeds, the second one negative.
    """

    samples: tuple[MetricSample, ...]

    @property
    def value(self) -> float:
        return float(sum(sample.values.mean() for sample in self.samples))

    @property
    def images(self) -> int:
        """How many are resampled; 0 where the noise of images is unknown."""
        return min(s.images if s.resamples is not None else 0 for s in self.samples)

    @property
    def seeds(self) -> int:
        return min(len(sample.seeds) for sample in self.samples)

    @property
    def varies(self) -> bool:
        """Whether it has several seeds that differ."""
        return self.seeds > 1 and any(sample.varies for sample in self.samples)

    @property
    def has_noise(self) -> bool:
        """Whether any of its noise can be estimated."""
        return self.images > 1 or self.varies

    @property
    def image_variance(self) -> float:
        """The variance over resamples with one seed, the mean over seeds; 0 if unknown."""
        if self.images < 2:
            return 0.0
        resamples = [s.resamples for s in self.samples if s.resamples is not None]
        width = min(each.shape[1] for each in resamples)
        single = np.sum([each[: self.seeds, :width] for each in resamples], axis=0)
        shortfall = self.images / (self.images - 1)  # see ``deviations``
        return float(np.nanvar(single, axis=1, ddof=1).mean()) * shortfall

    @property
    def seed_noise(self) -> list[SeedNoise]:
        """How the seeds of each sample vary, relative to the noise of images.

        Each side of a difference whose seeds are independent has half of its noise of images.
        """
        scale = self.image_variance / len(self.samples)
        return [SeedNoise(s.seeds, s.values, scale) for s in self.samples if self.varies]

    def deviations(self) -> np.ndarray | None:
        """(R,) what resampling the images adds to the value, NaN where nothing is scored.

        None if unknown.

        Scaled by √(N / (N - 1)), the bootstrap's shortfall (Efron, Tibshirani 1993, section 5.3).
        """
        if self.images < 2:
            return None
        means = [s.resamples.mean(axis=0) for s in self.samples if s.resamples is not None]
        count = min(map(len, means))
        total = np.sum([mean[:count] for mean in means], axis=0)
        return (total - self.value) * np.sqrt(self.images / (self.images - 1))

    def times(self, factor: float) -> Quantity:
        """The quantity in another unit."""
        return Quantity(tuple(sample.times(factor) for sample in self.samples))


def difference(mine: MetricSample, base: MetricSample) -> Quantity:
    """``mine`` - ``base``: value and noise come from the same seeds.

    Several shared seeds are paired. Otherwise the sides are independent if each has several seeds,
    and else compared at one seed (a shared one if possible), whose noise is unknown.
    """
    shared = sorted(set(mine.seeds) & set(base.seeds))
    several = min(len(mine.seeds), len(base.seeds)) > 1
    if len(shared) > 1 or (shared and not several):
        return Quantity((mine.of(shared).minus(base.of(shared)),))
    sides = [mine, base.times(-1)]
    if mine.images != base.images:
        sides = [MetricSample(side.seeds, side.values) for side in sides]
    return Quantity(tuple(sides))


@functools.lru_cache(maxsize=2)  # tasks of one dataset follow each other
def image_weights(images: tuple[str, ...], resamples: int = RESAMPLES) -> np.ndarray:
    """(R, N) float32: how often each image is in each resample; a function of the images' names."""
    seed = int.from_bytes(hashlib.sha256("\n".join(images).encode()).digest()[:8], "little")
    rng, count = np.random.default_rng(seed), len(images)
    weights = np.empty((resamples, count), np.float32)
    step = max(1, BLOCK // max(count, 1))
    for start in range(0, resamples, step):
        rows = min(step, resamples - start)
        indices = rng.integers(0, count, (rows, count)) + np.arange(rows)[:, None] * count
        counts = np.bincount(indices.ravel(), minlength=rows * count)
        weights[start : start + rows] = counts.reshape(rows, count)
    return weights
