"""COCO's average precision over any resample of images, from the matches stored with each
detection."""

from __future__ import annotations

import numpy as np
from scipy import sparse

from reports.detections import Columns

RECALLS = np.linspace(0, 1, 101)
IOUS = 10  # thresholds 0.5, 0.55 … 0.95


class Matches:
    """The detections of a set of images as arrays, best score first within each class.

    Args:
        image_ids: (N,) in the order of the images.
        class_objects: (N, classes) number of objects that are no crowd.
        detections: columns with ``class``, ``KIND_hits``, ``KIND_ignored`` (whole numbers, a bit
            for each IoU threshold).
        kind: ``bbox`` or ``segm``.

    Raises:
        KeyError: the detections do not say what they matched.
    """

    def __init__(
        self, image_ids: np.ndarray, class_objects: np.ndarray, detections: Columns, kind: str
    ) -> None:
        self.objects = class_objects.astype(np.float64)
        counted = detections["class"] >= 0
        identity, score = detections["image_id"][counted], detections["score"][counted]
        self.image = places(image_ids, identity)
        self.label = detections["class"][counted].astype(np.int64)
        self.hits, self.ignored = (
            detections[f"{kind}_{what}"][counted].astype(np.int64) for what in ("hits", "ignored")
        )
        # pycocotools: images by id, then a stable sort by falling score
        self.order = np.lexsort((identity, -score, self.label))
        self.starts = np.searchsorted(self.label[self.order], np.arange(class_objects.shape[1] + 1))

    def precision(self, weights: np.ndarray) -> np.ndarray:
        """(R, 10) AP (0–1) at each IoU threshold of every resample, the mean over classes that have
        an object in it; NaN where none has. See ``by_class``."""
        found = self.by_class(weights)
        there = np.isfinite(found)
        total, classes = np.where(there, found, 0.0).sum(axis=1), there.sum(axis=1)
        return np.divide(total, classes, out=np.full(total.shape, np.nan), where=classes > 0)

    def by_class(self, weights: np.ndarray) -> np.ndarray:
        """AP (0–1) of each class at each IoU threshold of every resample.

        Counting an image k times gives what pycocotools gives for k copies of it. Precision is
        looked at where a detection is
        right only: between those it can only fall, and the interpolation takes the best to the
        right (COCO's 101 recall points).

        Args:
            weights: (R, N) how often each image is in each resample, >= 0.

        Returns:
            (R, classes, 10); NaN where a resample has no object of the class.
        """
        present = weights @ self.objects  # (R, classes)
        found = np.full((*present.shape, IOUS), np.nan)
        by_image = np.ascontiguousarray(
            weights.T, np.float32
        )  # whole numbers: sums below 2**24 are exact
        for label in np.flatnonzero(self.objects.any(axis=0)):
            mine, has = (
                self.order[self.starts[label] : self.starts[label + 1]],
                present[:, label] > 0,
            )
            found[has, label] = self._class(by_image[:, has], mine, present[has, label])
        return found

    def _class(self, weights: np.ndarray, mine: np.ndarray, objects: np.ndarray) -> np.ndarray:
        """(R, 10) of one class, from (N, R) weights, its detections, best first, and how many
        objects it has in each resample.

        Most detections are wrong at every level: these are summed once, up to each of the others.
        """
        found = np.zeros((len(objects), IOUS))
        hits, ignored, image = self.hits[mine], self.ignored[mine], self.image[mine]
        others = (hits | ignored) != 0
        before = np.cumsum(others)  # how many others come before each wrong one
        inside = ~others & (
            before < others.sum()
        )  # what follows the last right one changes nothing
        shape = (int(others.sum()), len(weights))
        wrong = sparse.csr_matrix(
            (np.ones(inside.sum(), np.float32), (before[inside], image[inside])), shape=shape
        )
        always = np.cumsum((wrong @ weights).T, axis=1)  # (R, others)
        hits, ignored, mass = (
            hits[others],
            ignored[others],
            np.ascontiguousarray(weights[image[others]].T),
        )
        for level in range(IOUS):
            hit = (hits >> level & 1).astype(bool)
            if not hit.any():
                continue
            false, missed = always, ~hit & (ignored >> level & 1 == 0)
            if missed.any():
                false = always + np.cumsum(mass * missed, axis=1, dtype=np.float32)
            right = np.cumsum(mass[:, hit], axis=1, dtype=np.float64)  # (R, hits)
            precision = right / np.maximum(right + false[:, hit], np.spacing(1))
            best = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
            reached = _recalls(right / objects[:, None])
            found[:, level] = (best * np.diff(reached, axis=1, prepend=0)).sum(axis=1) / len(
                RECALLS
            )
        return found


def _recalls(recall: np.ndarray) -> np.ndarray:
    """How many of ``RECALLS`` are not above each recall, as ``searchsorted`` on the right says it,
    but quicker."""
    near = np.minimum(recall * 100 + 0.5, 100.5).astype(
        np.int64
    )  # the nearest one, which may be just above
    return near + (RECALLS[near] <= recall)


def places(image_ids: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """Where each of ``wanted`` is in ``image_ids``. Raises ``KeyError`` for one that is not
    there."""
    order = np.argsort(image_ids)
    found = order[np.searchsorted(image_ids, wanted, sorter=order).clip(max=max(len(order) - 1, 0))]
    if not np.array_equal(image_ids[found], wanted):
        raise KeyError("a detection on an image that was not scored")
    return found


def image_f1(
    image_ids: np.ndarray, objects: np.ndarray, detections: Columns, least: float = 0.3
) -> np.ndarray:
    """(N,) F-measure in percent of each image at IoU 0.5 over the detections with a score of
    ``least`` or more.

    For choosing pictures only: COCO's AP is not defined for one image. NaN where nothing is there
    and nothing was found.
    """
    shown = (detections["score"] >= np.float32(least)) & (detections["bbox_ignored"] & 1 == 0)
    place = places(image_ids, detections["image_id"][shown])
    found, right = (
        np.bincount(place, weight, minlength=len(image_ids))
        for weight in (None, detections["bbox_hits"][shown] & 1)
    )
    with np.errstate(invalid="ignore"):
        return 100 * 2 * right / (found + objects)
