"""Which detections are right: COCO's matching, image by image, kept so that a report can resample images.

The matching of an image does not depend on other images, so an average precision over any draw of images (with repeats) follows
from these matches alone, without the truth.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import numpy as np
from pycocotools import mask as mask_api

THRESHOLDS = np.linspace(0.5, 0.95, 10)
MOST = 100  # detections of a class in an image, COCO's maxDets


def match_image(overlaps: np.ndarray, crowd: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Match the detections of one class in one image as pycocotools' ``COCOeval.evaluateImg`` does (area range "all").

    Args:
        overlaps: (detections, objects) IoU, detections by falling score; objects that are a crowd come last.
        crowd: (objects,) bool; a crowd may be matched by many, and its matches are ignored.

    Returns:
        hits, ignored: (detections, 10) bool, one column for each IoU threshold 0.5, 0.55 … 0.95. A detection that is neither is
        wrong.
    """
    count, objects = overlaps.shape
    hits, ignored = np.zeros((count, len(THRESHOLDS)), bool), np.zeros((count, len(THRESHOLDS)), bool)
    if not objects:
        return hits, ignored
    free = np.ones((len(THRESHOLDS), objects), bool)
    limits = np.minimum(THRESHOLDS, 1 - 1e-10)[:, None]
    every = np.arange(len(THRESHOLDS))
    for row in np.flatnonzero(overlaps.max(axis=1) >= THRESHOLDS[0]):
        fits = (overlaps[row] >= limits) & (free | crowd)
        single = fits & ~crowd
        single_found = single.any(axis=1)
        candidates = np.where(single_found[:, None], single, fits)  # a crowd is taken only where no single object fits
        found = candidates.any(axis=1)
        # of equal overlaps pycocotools takes the last
        best = objects - 1 - np.argmax(np.where(candidates, overlaps[row], -1.0)[:, ::-1], axis=1)
        free[every[found], best[found]] = False
        hits[row] = single_found
        ignored[row] = found & ~single_found
    return hits, ignored


def add_matches(
    truth: Any,
    detections: Sequence[dict[str, Any]],
    image_ids: Sequence[int],
    categories: Sequence[int],
    kinds: Sequence[str],
) -> np.ndarray:
    """Write into each detection what it matched, and count the objects.

    A detection gets ``class`` (place of its category in ``categories``) and, for each kind (``bbox``, ``segm``),
    ``KIND_hits`` and ``KIND_ignored``: whole numbers whose bit k says so at the k-th IoU threshold. A detection past the
    hundredth of its class in its image has ``class`` -1: COCO does not look at it.

    Args:
        truth: a ``COCO`` of pycocotools or faster-coco-eval.
        detections: COCO result list, changed in place.

    Returns:
        (images, categories) int64: objects that are no crowd, the images in the order of ``image_ids``.
    """
    places = {category: place for place, category in enumerate(categories)}
    found: dict[tuple[int, int], list[dict[str, Any]]] = defaultdict(list)
    for one in detections:
        found[one["image_id"], one["category_id"]].append(one)
    counts = np.zeros((len(image_ids), len(categories)), np.int64)
    for row, image in enumerate(image_ids):
        objects: dict[int, list[dict[str, Any]]] = defaultdict(list)
        for one in truth.imgToAnns[image]:
            if one["category_id"] in places:
                objects[one["category_id"]].append(one)
        for category, place in places.items():
            mine = sorted(objects[category], key=lambda one: bool(one.get("iscrowd")))
            crowd = np.array([bool(one.get("iscrowd")) for one in mine], bool)
            counts[row, place] = (~crowd).sum()
            ranked = sorted(found[image, category], key=lambda one: -one["score"])
            for one in ranked[MOST:]:
                one["class"] = -1
            ranked = ranked[:MOST]
            for one in ranked:
                one["class"] = place
            for kind in kinds if ranked else ():
                hits, ignored = match_image(_overlaps(truth, ranked, mine, kind), crowd)
                bits = 1 << np.arange(len(THRESHOLDS))
                for one, hit, left_out in zip(ranked, hits @ bits, ignored @ bits, strict=True):
                    one[f"{kind}_hits"], one[f"{kind}_ignored"] = int(hit), int(left_out)
    return counts


def _overlaps(truth: Any, detections: list[dict[str, Any]], objects: list[dict[str, Any]], kind: str) -> np.ndarray:
    if not objects:
        return np.zeros((len(detections), 0))
    crowd = [int(bool(one.get("iscrowd"))) for one in objects]
    if kind == "bbox":
        boxes = [np.array([one["bbox"] for one in side], np.float64) for side in (detections, objects)]
        return np.asarray(mask_api.iou(*boxes, crowd))
    codes = [truth.annToRLE(one) for one in objects]
    return np.asarray(mask_api.iou([one["segmentation"] for one in detections], codes, crowd))
