"""Metrics of matched patches as functions of how often each object or pair counts, in percent.

See ``reports.stats.per_image``. Importing this imports nothing that computes but numpy.
"""

from __future__ import annotations

from functools import partial
from itertools import pairwise

import numpy as np

from cliptex_common.weighted import Arrays, mean_of_images
from reports.stats.per_image import SCORERS, ImageScores

# kind → (recall, unit of the error, limit); the first is the main one
RECALLS: dict[str, list[tuple[str, str, float]]] = {
    "object-views": [
        ("recall_2cm", "m", 0.02),
        ("recall_1cm", "m", 0.01),
        ("recall_5cm", "m", 0.05),
        ("recall_5px", "px", 5),
        ("recall_25px", "px", 25),
        ("recall_50px", "px", 50),
    ],
    "scene-views": [("recall_10px", "px", 10), ("recall_5px", "px", 5), ("recall_20px", "px", 20)],
}
ANGLES = {"object-views": (0, 30, 60, 90, 120), "scene-views": (0, 15, 30, 60, 180)}


def video(images: tuple[str, ...], arrays: Arrays) -> ImageScores:
    """``J``, ``F`` and their mean ``J_and_F``, means over objects, which are the images."""
    scores = {"J_and_F": (arrays["J"] + arrays["F"]) / 2, "J": arrays["J"], "F": arrays["F"]}
    metrics = {name: partial(mean_of_images, 100 * score) for name, score in scores.items()}
    return ImageScores(images, metrics, lambda: 100 * scores["J_and_F"], "J&F", 1)


def view_pairs(kind: str, images: tuple[str, ...], arrays: Arrays) -> ImageScores:
    """``recall_…`` within a distance, means over pairs, which are the images; the main one also of
    the pairs whose ``angle`` is in a bin: ``recall_…_0-30``."""
    scores = {name: arrays[name] for name, _, _ in RECALLS[kind]}
    main, angle = next(iter(scores)), arrays["angle"]
    for (low, high), name in zip(pairwise(ANGLES[kind]), binned_recalls(kind), strict=True):
        scores[name] = np.where((angle >= low) & (angle < high), scores[main], np.nan)
    metrics = {name: partial(mean_of_images, 100 * score) for name, score in scores.items()}
    return ImageScores(images, metrics, lambda: 100 * scores[main], "recall", 1)


def binned_recalls(kind: str) -> list[str]:
    """Names of the recalls by bins of the angle."""
    return [f"{RECALLS[kind][0][0]}_{low}-{high}" for low, high in pairwise(ANGLES[kind])]


SCORERS.register("video", video)
for _kind in RECALLS:
    SCORERS.register(_kind, partial(view_pairs, _kind))
