"""Scores of one predicted map against its ground truth, where the model computes."""

from __future__ import annotations

import torch
from torch import Tensor


def confusion(prediction: Tensor, label: Tensor, classes: int, ignore_index: int) -> Tensor:
    """(classes, classes) int64: pixels of one image by label and prediction; those whose label is
    ``ignore_index`` count nowhere.

    One histogram of pairs, with a last bin for what is not scored: a tenth of the time of mmseg's
    ``intersect_and_union``, which gives the same counts, and on a GPU nothing waits for them.

    Args:
        prediction, label: (H, W) int64 class indices.
    """
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
    (px, py, pz), (tx, ty, tz) = prediction.double(), target.double()
    cross = (
        (py * tz - pz * ty).square() + (pz * tx - px * tz).square() + (px * ty - py * tx).square()
    ).sqrt()
    return torch.rad2deg(torch.atan2(cross, px * tx + py * ty + pz * tz))
