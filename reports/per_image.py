"""Per-image scores of a run, and its metrics as functions of how often each image counts.

The formulas stand in the probes, which compute a run's metrics by them with weights of one, and
register them here by kind of task, so that reports resample the same. Retrieval uses the ranks
among all images and captions: the queries are resampled, the gallery is fixed.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import ArrayLike

from cliptex_common.metrics import Arrays
from cliptex_common.registry import Registry
from reports.records import Columns

# weights (R, U), how often each unit is in each set → values (R,)
MetricFunction = Callable[[np.ndarray], np.ndarray]
TOLERANCE = 1e-3  # relative difference between a metric and its value from per-image scores


@dataclass(frozen=True)
class ClassScores:
    """The scores of each of C classes.

    Attributes:
        metric: ``IoU`` or ``box AP``.
        names: (C,), as the probe stored them, else numbers.
        images: (C,) number of images with an object or a pixel of the class.
        values: (C,) percent; NaN without any.
    """

    metric: str
    names: tuple[str, ...]
    images: np.ndarray
    values: np.ndarray


@dataclass(frozen=True)
class ImageScores:
    """The scores of N images.

    Attributes:
        images: names of the N images, sorted.
        metrics: metric → its function of weights.
        of_images: returns (N,) one score an image, to choose pictures by; NaN where it has none.
        score_name, direction: what that score is called, and +1 where higher is better, else -1.
        most_resamples: more resamples than this would take too long.
        classes: the metric of each class, for kinds that have classes.
        units: names of the U units that are resampled: the images, or what they are made of.
        finite: (N,) whether all that is stored of an image is a finite number.
        of_classes: returns the score of each class in each image, name → (N,), NaN where it has
            none; empty for kinds without such scores.
        traits: returns what an image's score may go with: name → (N,) amounts of classes, sizes …
    """

    images: tuple[str, ...]
    metrics: Mapping[str, MetricFunction]
    of_images: Callable[[], np.ndarray]
    score_name: str
    direction: int
    most_resamples: int = 1_000_000
    classes: ClassScores | None = None
    units: tuple[str, ...] = ()
    finite: np.ndarray = field(default_factory=lambda: np.ones(0, bool))
    of_classes: Callable[[], Mapping[str, np.ndarray]] = dict
    traits: Callable[[], Mapping[str, np.ndarray]] = dict

    def __post_init__(self) -> None:
        if not self.units:
            object.__setattr__(self, "units", self.images)

    def resampled_by(self, members: np.ndarray) -> ImageScores:
        """The same over resamples of units: an image has the product of its units' weights.

        Pairs of images that recur are not independent, but the images are (the pigeonhole
        bootstrap; Owen, Ann. Appl. Stat. 1, 2007).

        Args:
            members: (N,) or (N, k) names of each image's units.
        """
        units, index = np.unique(members, return_inverse=True)
        index = index.reshape(len(members), -1)

        def over_units(metric: MetricFunction) -> MetricFunction:
            return lambda weights: metric(weights[:, index].prod(axis=2))

        metrics = {name: over_units(metric) for name, metric in self.metrics.items()}
        return replace(self, units=tuple(map(str, units)), metrics=metrics)

    def value(self, metric: str) -> float:
        """The metric over all images."""
        return float(self.metrics[metric](np.ones((1, len(self.units))))[0])

    def values(self) -> dict[str, float]:
        """All metrics over all images."""
        return {name: self.value(name) for name in self.metrics}


# kind of task → the scores of its images: names and arrays, of detection the detections, too.
# Probes add theirs when they are imported; reports import none.
SCORERS: Registry[Callable[..., ImageScores | None]] = Registry("scorer of images", "scorers")


def image_scores(
    kind: str, arrays: Arrays, detections: Columns | None = None
) -> ImageScores | None:
    """See ``ImageScores``; None for a kind without per-image scores.

    Args:
        arrays: as the probes write them, first axis images, with ``image`` and, where these are not
            independent, ``unit``; ``classes`` are names.
    """
    if kind not in SCORERS:
        return None
    arrays, names = dict(arrays), arrays["image"]
    images, order = _sorted(names.tobytes(), names.dtype)
    if order is not None:
        for name, values in arrays.items():
            if values.shape[:1] == order.shape and name != "classes":
                arrays[name] = values[order]
    units = arrays.pop("unit", None)
    try:
        scores = SCORERS[kind](images, arrays, *([detections] if detections else []))
    except Exception:
        if not SCORERS.origin(kind):
            raise
        return None  # another version of the plugin than the one that it ran with
    if scores is None:
        return None
    floats = [a for a in arrays.values() if a.shape[:1] == names.shape and a.dtype.kind == "f"]
    finite = [np.isfinite(a).reshape(len(names), -1).all(axis=1) for a in floats]
    scores = replace(scores, finite=np.logical_and.reduce([np.ones(len(names), bool), *finite]))
    return scores if units is None else scores.resampled_by(units)


@functools.lru_cache(maxsize=32)  # the data sets of a table
def _sorted(content: bytes, dtype: np.dtype) -> tuple[tuple[str, ...], np.ndarray | None]:
    """Names from their bytes, sorted, and the order that sorts them; None if they are sorted."""
    names = np.frombuffer(content, dtype)
    order = np.argsort(names, kind="stable")
    in_order = np.array_equal(order, np.arange(len(names)))
    return tuple(map(str, names[order])), None if in_order else order


def agrees(computed: ArrayLike, stored: ArrayLike) -> np.ndarray:
    """Whether stored metrics are those that their per-image scores give; of the shape of both."""
    return np.isclose(computed, stored, rtol=TOLERANCE, atol=1e-6)


def needs_plugin(kind: str) -> bool:
    """Whether the images of a kind of task are scored by a plugin, loaded or not."""
    return kind not in SCORERS or bool(SCORERS.origin(kind))


def why_unscored(kind: str) -> str:
    """Why a run of a kind of task has no per-image scores here."""
    if not needs_plugin(kind):
        return "it has no per-image scores"
    return f"its per-image scores need the plugin of {kind!r} that it ran with (--plugin FILE)"


def class_scores(
    metric: str, arrays: Arrays, amounts: np.ndarray, values: np.ndarray
) -> ClassScores:
    """See ``ClassScores``; ``amounts`` (N, C) are positive where an image has a class."""
    names = tuple(map(str, arrays.get("classes", range(len(values)))))
    return ClassScores(metric, names, (amounts > 0).sum(axis=0), values)


def class_traits(classes: ClassScores, amounts: np.ndarray, what: str) -> dict[str, np.ndarray]:
    """Traits of images: how many classes they have, and the amount of each.

    Args:
        amounts: (N, C).
        what: is counted: ``area``, ``number``.
    """
    named = {f"{what} of {name}": each for name, each in zip(classes.names, amounts.T, strict=True)}
    return {"number of classes": (amounts > 0).sum(axis=1), **named}
