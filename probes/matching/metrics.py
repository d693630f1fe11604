"""Metrics of matched patches as functions of how often each object or pair counts, in percent.

See ``reports.stats.per_image``. Importing this imports nothing that computes but numpy.
"""

from __future__ import annotations

from functools import partial

from cliptex_common.weighted import Arrays, mean_of_images
from reports.stats.per_image import SCORERS, ImageScores


def video(images: tuple[str, ...], arrays: Arrays) -> ImageScores:
    """``J``, ``F`` and their mean ``J_and_F``, means over objects, which are the images."""
    scores = {"J_and_F": (arrays["J"] + arrays["F"]) / 2, "J": arrays["J"], "F": arrays["F"]}
    metrics = {name: partial(mean_of_images, 100 * score) for name, score in scores.items()}
    return ImageScores(images, metrics, lambda: 100 * scores["J_and_F"], "J&F", 1)


SCORERS.register("video", video)
