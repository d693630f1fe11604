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
from numpy.typing import ArrayLike

RESAMPLES = 1000
BLOCK = 25_000_000  # weights in a block, which bounds the memory
ROUNDING = 1e-9  # relative


@dataclass(frozen=True)
class MetricSample:
    """A metric of one backbone in one column, or a weighted sum of such.

    Attributes:
        seeds: in order.
        values: (S,) the metric with each seed.
        resamples: (S, R) the same over each resample of images, or None if unknown; NaN where a
            resample has nothing to score.
        images: how many images are resampled; 0 if unknown.
    """

    seeds: tuple[int, ...]
    values: np.ndarray
    resamples: np.ndarray | None = None
    images: int = 0

    @functools.cached_property
    def scored(self) -> np.ndarray:
        """(S, R') the resamples that have something to score; none if they are unknown."""
        if self.resamples is None:
            return np.empty((len(self.seeds), 0))
        return self.resamples[:, np.isfinite(self.resamples).all(axis=0)]

    @property
    def varies(self) -> bool:
        """Whether its seeds differ by more than rounding, in the metric or over resamples."""
        rows = np.hstack([self.values[:, None], self.scored])
        return bool(np.any(np.ptp(rows, axis=0) > ROUNDING * np.abs(rows).max()))

    def of(self, seeds: Sequence[int]) -> MetricSample:
        """The sample of these seeds alone."""
        rows = [self.seeds.index(seed) for seed in seeds]
        resamples = None if self.resamples is None else self.resamples[rows]
        return MetricSample(tuple(seeds), self.values[rows], resamples, self.images)

    @functools.cached_property
    def variances(self) -> tuple[float, float]:
        """Over resamples: of the mean over seeds, and of one seed (the mean over seeds).

        Times N / (N - 1), the bootstrap's shortfall (Efron, Tibshirani 1993, section 5.3); 0 if
        unknown.
        """
        if self.resamples is None or self.images < 2:
            return 0.0, 0.0
        shortfall = self.images / (self.images - 1)
        of_mean = self.scored.mean(axis=0).var(ddof=1)
        of_seeds = self.scored.var(axis=1, ddof=1).mean()
        return float(of_mean) * shortfall, float(of_seeds) * shortfall


def weighted_sum(samples: Sequence[MetricSample], weights: ArrayLike) -> MetricSample:
    """The sum of samples with the same number of seeds; the n-th seeds of all belong together.

    Its noise of images is unknown if that of any sample is.
    """
    weights = np.asarray(weights, float)
    values = weights @ np.stack([sample.values for sample in samples])
    arrays = [sample.resamples for sample in samples if sample.resamples is not None]
    if len(arrays) < len(samples):
        return MetricSample(samples[0].seeds, values)
    count = min(array.shape[1] for array in arrays)
    resamples = np.tensordot(weights, np.stack([array[:, :count] for array in arrays]), 1)
    images = min(sample.images for sample in samples)
    return MetricSample(samples[0].seeds, values, resamples, images)


def difference(mine: MetricSample, base: MetricSample) -> MetricSample:
    """``mine`` - ``base``, seed by seed."""
    return weighted_sum(pair_samples(mine, base), (1, -1))


def pair_samples(mine: MetricSample, base: MetricSample) -> tuple[MetricSample, MetricSample]:
    """Both sides with the seeds that are compared: those that both have. Where these are fewer than
    two though each has several, seeds are independent, and any order pairs them."""
    shared = sorted(set(mine.seeds) & set(base.seeds))
    count = min(len(mine.seeds), len(base.seeds))
    if len(shared) >= min(count, 2):
        return mine.of(shared), base.of(shared)
    return mine.of(mine.seeds[:count]), base.of(base.seeds[:count])


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
