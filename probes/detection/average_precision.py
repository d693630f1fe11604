"""COCO's average precision over any resample of images, from stored matches of detections.

A probe's own numbers are faster-coco-eval's, which has sizes of objects, too; without resampling
``Matches`` gives the same up to rounding.
"""

from __future__ import annotations

from functools import cached_property

import numpy as np
from scipy import sparse

from cliptex_common.metrics import Arrays
from reports.per_image import ImageScores, MetricFunction, class_scores, class_traits
from reports.records import Columns

RECALLS = np.linspace(0, 1, 101)
IOUS = 10  # thresholds 0.5, 0.55 … 0.95
# correct detections over all IoU thresholds × resamples: a fifth of a second
WORK = 1_000_000


def detection_scores(
    images: tuple[str, ...], arrays: Arrays, detections: Columns | None = None
) -> ImageScores | None:
    """See ``reports.per_image.ImageScores``; None without matches."""
    if detections is None or "class_objects" not in arrays:
        return None
    ids, objects = arrays["image_id"], arrays["class_objects"]
    matches = {
        kind: Matches(ids, objects, detections, kind)
        for kind in ("bbox", "segm")
        if f"{kind}_hits" in detections
    }
    hits = int(np.unpackbits(detections["bbox_hits"].astype(">u2").view(np.uint8)).sum())
    ap_of_classes = 100 * matches["bbox"].of_all_images[0].mean(axis=1)
    classes = class_scores("box AP", arrays, objects, ap_of_classes)
    return ImageScores(
        images,
        {f"{kind}_mAP": _mean_precision(each) for kind, each in matches.items()},
        lambda: image_f1(ids, objects.sum(axis=1), detections),
        "F-measure at IoU 0.5",
        1,
        int(np.clip(WORK / max(hits, 1), 200, 1000)),
        classes,
        traits=lambda: {
            "number of objects": objects.sum(axis=1),
            **class_traits(classes, objects, "number"),
        },
    )


class Matches:
    """The detections of a set of images as arrays, highest score first within each class.

    Args:
        image_ids: (N,) in the order of the images.
        class_objects: (N, classes) number of objects that are no crowd.
        detections: columns with ``class``, ``KIND_hits``, ``KIND_ignored`` (integers, a bit for
            each IoU threshold).
        kind: ``bbox`` or ``segm``.

    Raises:
        KeyError: the detections have no matches.
    """

    def __init__(
        self, image_ids: np.ndarray, class_objects: np.ndarray, detections: Columns, kind: str
    ) -> None:
        self.objects = class_objects.astype(np.float64)
        counted = detections["class"] >= 0
        identity, score = detections["image_id"][counted], detections["score"][counted]
        self.image = positions(image_ids, identity)
        self.label = detections["class"][counted]
        self.hits = detections[f"{kind}_hits"][counted].astype(np.int64)
        self.ignored = detections[f"{kind}_ignored"][counted].astype(np.int64)
        # pycocotools: images by id, then a stable sort by falling score
        self.order = np.lexsort((identity, -score, self.label))
        self.starts = np.searchsorted(self.label[self.order], np.arange(class_objects.shape[1] + 1))

    def precision(self, weights: np.ndarray) -> np.ndarray:
        """(R, 10) AP (0–1) at each IoU threshold of every resample, the mean over its classes.

        NaN where a resample has no object. See ``by_class``.
        """
        is_each_once = len(weights) == 1 and bool((weights == 1).all())
        by_class = self.of_all_images if is_each_once else self.by_class(weights)
        present = np.isfinite(by_class)
        total, classes = np.where(present, by_class, 0.0).sum(axis=1), present.sum(axis=1)
        return np.divide(total, classes, out=np.full(total.shape, np.nan), where=classes > 0)

    @cached_property
    def of_all_images(self) -> np.ndarray:
        """(1, classes, 10) ``by_class`` of every image once."""
        return self.by_class(np.ones((1, len(self.objects))))

    def by_class(self, weights: np.ndarray) -> np.ndarray:
        """AP (0–1) of each class at each IoU threshold of every resample.

        An image of weight k counts as k copies do in pycocotools. Precision is computed at correct
        detections only: between them it can only fall, and the interpolation at COCO's 101 recall
        points uses the maximum to the right.

        Args:
            weights: (R, N) how often each image is in each resample, >= 0.

        Returns:
            (R, classes, 10); NaN where a resample has no object of the class.
        """
        objects = weights @ self.objects  # (R, classes)
        result = np.full((*objects.shape, IOUS), np.nan)
        # integers: sums below 2**24 are exact
        by_image = np.ascontiguousarray(weights.T, np.float32)
        for label in np.flatnonzero(self.objects.any(axis=0)):
            detections = self.order[self.starts[label] : self.starts[label + 1]]
            present = objects[:, label] > 0
            selected = by_image if present.all() else by_image[:, present]
            result[present, label] = self._class(selected, detections, objects[present, label])
        return result

    def _class(
        self, weights: np.ndarray, detections: np.ndarray, objects: np.ndarray
    ) -> np.ndarray:
        """(R, 10) AP of one class.

        Most detections are wrong at every threshold: their weights are summed once, up to each of
        the matched ones.

        Args:
            weights: (N, R).
            detections: indices of the class's detections, highest score first.
            objects: (R,) number of objects of the class.
        """
        result = np.zeros((len(objects), IOUS))
        hits, ignored, image = (
            self.hits[detections],
            self.ignored[detections],
            self.image[detections],
        )
        matched = (hits | ignored) != 0
        before = np.cumsum(matched)  # matched detections before each wrong one
        inside = ~matched & (before < matched.sum())  # nothing changes after the last match
        shape = (int(matched.sum()), len(weights))
        ends = np.searchsorted(before[inside], np.arange(shape[0] + 1))
        ones = np.ones(ends[-1], np.float32)
        wrong = sparse.csr_matrix((ones, image[inside], ends), shape)
        hits, ignored = hits[matched], ignored[matched] & ~hits[matched]
        mass = weights[image[matched]]
        counted = np.cumsum(wrong @ weights + mass, axis=0)  # (matched, R), with what is ignored
        for level in range(IOUS):
            hit = np.flatnonzero(hits >> level & 1)
            if not len(hit):
                continue
            detected, left_out = counted[hit], ignored >> level & 1
            if left_out.any():
                detected -= np.cumsum(mass * left_out[:, None], axis=0, dtype=np.float32)[hit]
            correct = np.cumsum(mass[hit], axis=0)  # (hits, R)
            # what has no weight gets no point below
            np.maximum(detected, np.float32(1), out=detected)
            best = np.divide(correct, detected, dtype=np.float64)
            np.maximum.accumulate(best[::-1], axis=0, out=best[::-1])
            reached = _recalls(np.divide(correct, objects, dtype=np.float64))
            # how many of the recalls each correct detection adds
            np.subtract(reached[1:], reached[:-1].copy(), out=reached[1:])
            best *= reached
            result[:, level] = best.sum(axis=0) / len(RECALLS)
        return result


def _recalls(recall: np.ndarray) -> np.ndarray:
    """How many of ``RECALLS`` are not above each recall: ``searchsorted`` (right), but faster."""
    nearest = recall * 100
    nearest += 0.5
    np.floor(np.minimum(nearest, 100.5, out=nearest), out=nearest)
    nearest += nearest * RECALLS[1] <= recall
    return nearest


def positions(image_ids: np.ndarray, query: np.ndarray) -> np.ndarray:
    """The index of each of ``query`` in ``image_ids``.

    Raises:
        KeyError: one is missing.
    """
    order = np.argsort(image_ids)
    last = max(len(order) - 1, 0)
    index = order[np.searchsorted(image_ids, query, sorter=order).clip(max=last)]
    if not np.array_equal(image_ids[index], query):
        raise KeyError("a detection on an image without scores")
    return index


def image_f1(
    image_ids: np.ndarray, objects: np.ndarray, detections: Columns, least: float = 0.3
) -> np.ndarray:
    """(N,) F-measure in percent of each image at IoU 0.5, to choose pictures by.

    COCO's AP is not defined for one image. NaN without objects and detections.

    Args:
        least: score that a detection needs to count.
    """
    shown = (detections["score"] >= np.float32(least)) & (detections["bbox_ignored"] & 1 == 0)
    image = positions(image_ids, detections["image_id"][shown])
    detected, correct = (
        np.bincount(image, weight, minlength=len(image_ids))
        for weight in (None, detections["bbox_hits"][shown] & 1)
    )
    with np.errstate(invalid="ignore"):
        return 100 * 2 * correct / (detected + objects)


def _mean_precision(matches: Matches) -> MetricFunction:
    return lambda weights: 100 * matches.precision(weights).mean(axis=1)
