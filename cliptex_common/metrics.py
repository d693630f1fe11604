"""The arithmetic of metrics: scores of one predicted map, computed where the model computes, and
means over images that count with weights, as reports resample them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from torch import Tensor


def confusion(prediction: Tensor, label: Tensor, classes: int, ignore_index: int) -> Tensor:
    """(classes, classes) int64: pixels of one image by label and prediction; those whose label is
    ``ignore_index`` count nowhere.

    One histogram of pairs, with a last bin for what is not scored: a tenth of the time of mmseg's
    ``intersect_and_union``, which gives the same counts, and on a GPU nothing waits for them.

    Args:
        prediction, label: (H, W) int64 class indices.
    """
    import torch

    pairs = torch.where(label == ignore_index, classes**2, label * classes + prediction).flatten()
    counts = pairs.new_zeros(classes**2 + 1).index_add_(0, pairs, torch.ones_like(pairs))
    return counts[:-1].view(classes, classes)


def class_areas(counts: Tensor) -> dict[str, Tensor]:
    """``intersection``, ``prediction`` and ``label`` in pixels, each (classes,) int64, of what
    ``confusion`` counts."""
    return {
        "intersection": counts.diagonal().clone(),
        "prediction": counts.sum(dim=0),
        "label": counts.sum(dim=1),
    }


def depth_scores(prediction: Tensor, target: Tensor, valid: Tensor) -> dict[str, Tensor]:
    """Scores of one image over its valid pixels (Eigen, Puhrsch, Fergus 2014, section 4.3), scalars
    in float64; NaN without such a pixel.

    ``abs_rel`` = mean |p - t| / t; ``rmse`` in metres; ``log10`` = mean |log10 p - log10 t|;
    ``delta1`` … ``delta3`` = percent of pixels with max(p / t, t / p) < 1.25, 1.25², 1.25³.

    Args:
        prediction, target: (H, W) metres, > 0 where valid.
        valid: (H, W) bool.
    """
    import torch

    prediction, target = (torch.where(valid, each, 1.0).double() for each in (prediction, target))
    ratio = torch.maximum(prediction / target, target / prediction)
    difference, pixels = prediction - target, valid.sum().double()
    return {
        "abs_rel": (difference.abs() / target).sum() / pixels,
        "rmse": (difference.square().sum() / pixels).sqrt(),
        "log10": ratio.log10().sum() / pixels,  # the ratio is 1 or more: |log10 p - log10 t|
        **{f"delta{k}": 100 * ((ratio < 1.25**k) & valid).sum() / pixels for k in (1, 2, 3)},
    }


def angles(prediction: Tensor, target: Tensor) -> Tensor:
    """Angles in degrees, [0, 180], between vectors (3, …) of any length, in float64.

    By atan2(|p × t|, p · t): unlike arccos it is exact for small angles, and no rounding leaves its
    domain. By components: ``torch.linalg.cross`` takes nine times as long on a CPU.
    """
    import torch

    (px, py, pz), (tx, ty, tz) = prediction.double(), target.double()
    cross = (
        (py * tz - pz * ty).square() + (pz * tx - px * tz).square() + (px * ty - py * tx).square()
    ).sqrt()
    return torch.rad2deg(torch.atan2(cross, px * tx + py * ty + pz * tz))


Arrays = Mapping[str, np.ndarray]
CONFIDENCE_BINS = 15


def ratio(above: np.ndarray, below: np.ndarray) -> np.ndarray:
    """``above / below``; NaN where ``below`` is not positive."""
    return np.divide(
        above, below, out=np.full(np.shape(above), np.nan), where=np.asarray(below) > 0
    )


def bins_of(confidence: np.ndarray) -> np.ndarray:
    """The bin of each confidence among ``CONFIDENCE_BINS`` of equal width, [a, b); the last has 1,
    too."""
    return np.searchsorted(np.linspace(0, 1, CONFIDENCE_BINS + 1)[1:-1], confidence, side="right")


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


def region_similarity(target: np.ndarray, predicted: np.ndarray) -> float:
    """J: intersection over union of two masks (H, W) bool; 1 if both are empty."""
    union = np.logical_or(target, predicted).sum()
    return float(np.logical_and(target, predicted).sum() / union) if union else 1.0


TOLERANCE = 0.008  # of the diagonal: how far contours may be apart


def contour_accuracy(
    target: np.ndarray, predicted: np.ndarray, known: np.ndarray | None = None
) -> float:
    """F: F1 of the contours of two masks (H, W) bool; 1 if both have none, 0 if one has.

    Pixels of unknown class get, in both masks, the value of the nearest known pixel. So the outline
    of void is no contour; where it hides one, as the ring around every object of PASCAL VOC does,
    the contour is taken to run midway; and what is predicted in void changes nothing.

    Args:
        known: (H, W) bool, pixels whose class is known; None for all.
    """
    if known is not None and not known.all():
        target, predicted = _filled([target, predicted], known)
    contours = contour(target), contour(predicted)
    if not all(each.any() for each in contours):
        return float(not any(each.any() for each in contours))
    radius = np.ceil(TOLERANCE * np.hypot(*target.shape))
    recall, precision = (
        (_distance(b) <= radius)[a].mean() for a, b in (contours, reversed(contours))
    )
    total = precision + recall
    return float(2 * precision * recall / total) if total else 0.0


def _filled(masks: Sequence[np.ndarray], known: np.ndarray) -> list[np.ndarray]:
    """Masks whose other pixels have the value of the nearest known one; empty if none is known."""
    from scipy import ndimage

    if not known.any():
        return [np.zeros_like(mask) for mask in masks]
    nearest = ndimage.distance_transform_edt(~known, return_distances=False, return_indices=True)
    return [mask[tuple(nearest)] for mask in masks]


def contour(mask: np.ndarray) -> np.ndarray:
    """(H, W) bool: pixels that differ from the one to their right, below, or below that."""
    mask = mask.astype(bool)
    padded = np.pad(mask, ((0, 1), (0, 1)), mode="edge")
    return (mask != padded[:-1, 1:]) | (mask != padded[1:, :-1]) | (mask != padded[1:, 1:])


def _distance(contour: np.ndarray) -> np.ndarray:
    """Pixels from the contour, (H, W) float32."""
    import cv2

    elsewhere = np.logical_not(contour).astype(np.uint8)
    distance = cv2.distanceTransform(elsewhere, cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
    return distance.round(3)
