"""Means over images that count with weights: the arithmetic of metrics, and of their resamples."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

Arrays = Mapping[str, np.ndarray]
BINS = 15  # of confidences


def ratio(above: np.ndarray, below: np.ndarray) -> np.ndarray:
    """``above / below``; NaN where ``below`` is not positive."""
    return np.divide(
        above, below, out=np.full(np.shape(above), np.nan), where=np.asarray(below) > 0
    )


def bins_of(confidence: np.ndarray) -> np.ndarray:
    """The bin of each confidence among ``BINS`` of equal width, [a, b); the last has 1, too."""
    return np.searchsorted(np.linspace(0, 1, BINS + 1)[1:-1], confidence, side="right")


def mean_of_images(
    values: np.ndarray, weights: np.ndarray, size: np.ndarray | None = None
) -> np.ndarray:
    """(R,) the mean of images' ``values`` (N,) without NaN, by ``size`` (N,) if given.

    Images are added in pairs, as ``numpy.mean`` does, so that weights of one give its last digit.
    """
    values = values.astype(np.float64)
    counted = ~np.isnan(values)
    if size is None:
        weights, values = weights[:, counted], values[counted]
        return ratio((weights * values).sum(axis=1), weights.sum(axis=1, dtype=np.float64))
    counted &= size > 0
    weights, size = weights[:, counted], size[counted]
    return ratio((weights * (values[counted] * size)).sum(axis=1), weights @ size)


def mean_of_classes(values: np.ndarray) -> np.ndarray:
    """(R,) the mean of each row of (R, C) without NaN; NaN where there is no value."""
    values = values[:, ~np.isnan(values).all(axis=0)]
    present = ~np.isnan(values)
    return ratio(np.where(present, values, 0.0).sum(axis=1), present.sum(axis=1))
