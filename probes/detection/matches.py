"""Which detections are right: COCO's matching, image by image, kept so that a report can resample
images.

The matching of an image does not depend on other images, so an average precision over any draw of
images (with repeats) follows from these matches alone, without the ground truth.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from contextlib import redirect_stdout
from typing import Any

import numpy as np
from pycocotools.cocoeval import COCOeval

BITS = 1 << np.arange(10)  # one for each IoU threshold 0.5, 0.55 … 0.95


def add_matches(
    truth: Any,
    detections: Sequence[dict[str, Any]],
    image_ids: Sequence[int],
    categories: Sequence[int],
    kinds: Sequence[str],
) -> np.ndarray:
    """Write into each detection what pycocotools' ``evalImgs`` say of it (areas of all sizes), and
    count the objects.

    A detection gets ``class`` (place of its category in ``categories``) and, for each kind
    (``bbox``, ``segm``), ``KIND_hits`` and ``KIND_ignored``: whole numbers whose bit k says so at
    the k-th IoU threshold; one that is neither is wrong. A detection past the hundredth of its
    class in its image has ``class`` -1: COCO does not look at it.

    Args:
        truth: a ``COCO`` of pycocotools or faster-coco-eval; its masks are turned into run-length
            codes.
        detections: COCO result list, changed in place.

    Returns:
        (images, categories) int64: objects that are no crowd, the images in the order of
        ``image_ids``.
    """
    row_of = {image: row for row, image in enumerate(image_ids)}
    place_of = {category: place for place, category in enumerate(categories)}
    counts = np.zeros((len(image_ids), len(categories)), np.int64)
    for one in detections:
        one["class"] = -1
    for kind in kinds:
        with redirect_stdout(io.StringIO()):
            evaluation = COCOeval(truth, results_of(truth, detections, kind), kind)
            evaluation.params.imgIds, evaluation.params.catIds = list(image_ids), list(categories)
            evaluation.params.areaRng = evaluation.params.areaRng[:1]
            evaluation.evaluate()
        for found in filter(None, evaluation.evalImgs):
            place, ignored = place_of[found["category_id"]], found["dtIgnore"].astype(bool)
            counts[row_of[found["image_id"]], place] = len(found["gtIgnore"]) - sum(
                found["gtIgnore"]
            )
            hits = BITS @ ((found["dtMatches"] > 0) & ~ignored)
            for identity, hit, left_out in zip(found["dtIds"], hits, BITS @ ignored, strict=True):
                one = detections[identity - 1]  # results are numbered in their order
                one |= {"class": place, f"{kind}_hits": int(hit), f"{kind}_ignored": int(left_out)}
    return counts


def results_of(truth: Any, detections: Sequence[dict[str, Any]], kind: str) -> Any:
    """A COCO result list as an object of ``truth``'s type, without what is of no account for
    ``kind``: without its box, a mask result's area is that of its mask."""
    left_out = "bbox" if kind == "segm" else "segmentation"
    if detections:
        return truth.loadRes(
            [{name: value for name, value in one.items() if name != left_out} for one in detections]
        )
    empty = type(truth)()  # ``loadRes`` wants at least one
    empty.dataset = {**truth.dataset, "annotations": []}
    empty.createIndex()
    return empty
