"""The probes on images with several labels: their metrics, and their declarations. Importing this
imports nothing that computes but numpy.

Average precision of a class ranks all images by their score for it; images that nobody has decided
(VOC's difficult ones) count nowhere. ``mAP`` is the mean over classes of the area below the curve,
Σ (Rₙ − Rₙ₋₁) Pₙ over its thresholds, without interpolation: scikit-learn's
``average_precision_score``, and what is reported on COCO. ``mAP_11`` is VOC 2007's (Everingham et
al., IJCV 2010, section 4.2; its devkit's ``VOCevalcls``): the mean at the recalls 0, 0.1 … 1 of the
highest precision at that recall or a higher one. Images of equal score are one threshold in both.
"""

from __future__ import annotations

from functools import partial

import numpy as np

from cliptex_common.metrics import Arrays, mean_of_classes, ratio
from probes.base import FeatureProbe
from probes.image_level.settings import KnnSettings, LinearSettings
from probes.registry import register_probe
from reports.per_image import SCORERS, ImageScores, class_scores, class_traits
from reports.records import Metric

RECALLS = np.linspace(0, 1, 11)


def curve(
    scores: np.ndarray, labels: np.ndarray, weights: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Recall and precision (R, thresholds) of a class, highest threshold first; NaN without a right
    image and without an image.

    Args:
        scores: (N,) of the images.
        labels: (N,) 1, 0, or -1 where unknown.
        weights: (R, N) how often each image counts.
    """
    known = np.flatnonzero(labels >= 0)
    order = known[np.argsort(-scores[known], kind="stable")]
    last = np.append(np.flatnonzero(np.diff(scores[order])), len(order) - 1)
    counted = weights[:, order].astype(np.float64)
    right, seen = (np.cumsum(each, axis=1)[:, last] for each in (counted * labels[order], counted))
    return ratio(right, right[:, -1:]), ratio(right, seen)


def area(recall: np.ndarray, precision: np.ndarray) -> np.ndarray:
    """(R,) average precision as the area below the curve; see the head of this file."""
    steps = np.diff(recall, axis=1, prepend=0)
    return (steps * np.nan_to_num(precision)).sum(axis=1)


def eleven_points(recall: np.ndarray, precision: np.ndarray) -> np.ndarray:
    """(R,) average precision at eleven recalls; see the head of this file."""
    best = np.maximum.accumulate(np.nan_to_num(precision)[:, ::-1], axis=1)[:, ::-1]
    first = [(recall < level - 1e-9).sum(axis=1) for level in RECALLS]
    points = np.take_along_axis(best, np.minimum(first, best.shape[1] - 1).T, axis=1)
    return np.where(np.isnan(recall[:, -1]), np.nan, points.mean(axis=1))


SUMMARIES = {"mAP": area, "mAP_11": eleven_points}


def average_precisions(
    by: str, scores: np.ndarray, labels: np.ndarray, weights: np.ndarray
) -> np.ndarray:
    """(R, C) percent, NaN of a class that no counted image has; by a name of ``SUMMARIES``.

    Args:
        scores, labels: (N, C) and weights: (R, N), as of ``curve``.
    """
    values = np.full((len(weights), labels.shape[1]), np.nan)
    for number in np.flatnonzero((labels == 1).any(axis=0)):
        points = curve(scores[:, number], labels[:, number], weights)
        values[:, number] = 100 * SUMMARIES[by](*points)
    return values


def label_precisions(scores: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """(N, C) percent: of the classes that score in an image at least as high as one that it shows,
    the share that it shows, too; NaN of classes that it does not show. Their mean in an image is
    scikit-learn's ``label_ranking_average_precision_score``."""
    precisions = np.full(scores.shape, np.nan)
    for number, (score, label) in enumerate(zip(scores.T, labels.T, strict=True)):
        rows = label == 1
        higher = (scores[rows] >= score[rows, None]) & (labels[rows] >= 0)
        precisions[rows, number] = 100 * (higher & (labels[rows] == 1)).sum(1) / higher.sum(1)
    return precisions


def label_sets(images: tuple[str, ...], arrays: Arrays) -> ImageScores:
    """``mAP`` and ``mAP_11``, over the classes that an image in a set shows.

    Args:
        arrays: ``score`` and ``label`` (N, C), as of ``average_precisions``, and ``classes``.
    """
    score, label = arrays["score"], arrays["label"]
    shown = (label == 1).astype(np.float64)
    values = average_precisions("mAP", score, label, np.ones((1, len(images))))[0]
    classes = class_scores("AP", arrays, shown, values)

    def mean(by: str, weights: np.ndarray) -> np.ndarray:
        return mean_of_classes(average_precisions(by, score, label, weights))

    return ImageScores(
        images,
        {by: partial(mean, by) for by in SUMMARIES},
        lambda: mean_of_classes(label_precisions(score, label)),
        "precision of the ranking of its labels",
        1,
        max(100, 200_000_000 // score.size),
        classes,
        of_classes=lambda: dict(zip(classes.names, label_precisions(score, label).T, strict=True)),
        traits=lambda: class_traits(classes, shown, "number"),
    )


SCORERS.register("multi-label", label_sets)
METRICS = {
    "mAP": Metric(label="mAP (area)", shown=True),
    "mAP_11": Metric(label="mAP (11 points)", shown=True),
}
several = partial(FeatureProbe, kind="multi-label", metrics=METRICS, other_metrics=METRICS)
LINEAR, KNN = (
    register_probe(each)
    for each in (
        several(
            "linear",
            settings_type=LinearSettings,
            module="probes.image_level.tuned:run_linear",
            reuse="head",
        ),
        several(
            "knn",
            settings_type=KnnSettings,
            module="probes.image_level.neighbours:run_knn",
            reuse="train",
        ),
    )
)
