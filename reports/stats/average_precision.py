"""COCO's average precision over any resample of images, from the matches stored with each detection."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from scipy import sparse

RECALLS = np.linspace(0, 1, 101)
IOUS = 10  # thresholds 0.5, 0.55 … 0.95


class Matches:
    """The detections of a set of images as arrays, best score first within each class.

    Args:
        image_ids: (N,) in the order of the images.
        class_objects: (N, classes) number of objects that are no crowd.
        detections: COCO result list with ``class``, ``KIND_hits``, ``KIND_ignored`` (whole numbers, a bit for each IoU
        threshold). kind: ``bbox`` or ``segm``.

    Raises:
        KeyError: the detections do not say what they matched.
    """

    def __init__(
        self, image_ids: np.ndarray, class_objects: np.ndarray, detections: Sequence[Mapping[str, Any]], kind: str
    ) -> None:
        self.objects = class_objects.astype(np.float64)
        place = {int(image): number for number, image in enumerate(image_ids)}
        counted = [one for one in detections if one["class"] >= 0]
        self.image = np.array([place[one["image_id"]] for one in counted], np.int64)
        self.label = np.array([one["class"] for one in counted], np.int64)
        self.hits = np.array([one[f"{kind}_hits"] for one in counted], np.int64)
        self.ignored = np.array([one[f"{kind}_ignored"] for one in counted], np.int64)
        score = np.array([one["score"] for one in counted], np.float64)
        # pycocotools: images by id, then a stable sort by falling score
        identity = np.asarray(image_ids)[self.image] if len(counted) else self.image
        self.order = np.lexsort((np.arange(len(counted)), identity, -score))

    def precision(self, weights: np.ndarray) -> np.ndarray:
        """(R, 10) AP (0–1) at each IoU threshold of every resample, the mean over classes that have an object in it; NaN where
        none has. See ``by_class``."""
        found = self.by_class(weights)
        there = np.isfinite(found)
        total, classes = np.where(there, found, 0.0).sum(axis=1), there.sum(axis=1)
        return np.divide(total, classes, out=np.full(total.shape, np.nan), where=classes > 0)

    def by_class(self, weights: np.ndarray) -> np.ndarray:
        """AP (0–1) of each class at each IoU threshold of every resample.

        Counting an image k times gives what pycocotools gives for k copies of it. Precision is looked at where a detection is
        right only: between those it can only fall, and the interpolation takes the best to the right (COCO's 101 recall points).

        Args:
            weights: (R, N) how often each image is in each resample, >= 0.

        Returns:
            (R, classes, 10); NaN where a resample has no object of the class.
        """
        present = weights @ self.objects  # (R, classes)
        found = np.full((*present.shape, IOUS), np.nan)
        for label in np.flatnonzero(self.objects.any(axis=0)):
            mine = self.order[self.label[self.order] == label]
            has = present[:, label] > 0
            for level in range(IOUS):
                found[has, label, level] = self._one(weights[has], mine, level, present[has, label])
        return found

    def _one(self, weights: np.ndarray, mine: np.ndarray, level: int, objects: np.ndarray) -> np.ndarray:
        hit = (self.hits[mine] >> level & 1).astype(bool)
        if not hit.any():
            return np.zeros(len(weights))
        wrong = ~hit & ~(self.ignored[mine] >> level & 1).astype(bool)
        before = np.cumsum(hit) - hit  # how many right ones come before each detection
        inside = wrong & (before < hit.sum())  # what follows the last right one changes nothing
        shape = (int(hit.sum()), weights.shape[1])
        errors = sparse.csr_matrix((np.ones(inside.sum()), (before[inside], self.image[mine[inside]])), shape=shape)
        right = np.cumsum(weights[:, self.image[mine[hit]]], axis=1)  # (R, hits)
        false = np.cumsum((errors @ weights.T).T, axis=1)
        precision = right / np.maximum(right + false, np.spacing(1))
        best = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
        reached = np.searchsorted(RECALLS, right / objects[:, None], side="right")
        points = np.diff(reached, axis=1, prepend=0)
        return (best * points).sum(axis=1) / len(RECALLS)


def image_f1(
    image_ids: np.ndarray, objects: np.ndarray, detections: Sequence[Mapping[str, Any]], least: float = 0.3
) -> np.ndarray:
    """(N,) F-measure in percent of each image at IoU 0.5 over the detections with a score of ``least`` or more.

    For choosing pictures only: COCO's AP is not defined for one image. NaN where nothing is there and nothing was found.
    """
    place = {int(image): number for number, image in enumerate(image_ids)}
    right, found = np.zeros(len(image_ids)), np.zeros(len(image_ids))
    for one in detections:
        if one["score"] >= least and not one.get("bbox_ignored", 0) & 1:
            found[place[one["image_id"]]] += 1
            right[place[one["image_id"]]] += one.get("bbox_hits", 0) & 1
    with np.errstate(invalid="ignore"):
        return 100 * 2 * right / (found + objects)
