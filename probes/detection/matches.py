"""Which detections are right: COCO's matching of each image, stored so that a report can resample
images.

The matching of an image does not depend on other images, so the average precision of any resample
of images follows from these matches, without the ground truth.
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
    ground_truth: Any,
    detections: Sequence[dict[str, Any]],
    image_ids: Sequence[int],
    categories: Sequence[int],
    kinds: Sequence[str],
) -> np.ndarray:
    """Add the matches of pycocotools (areas of all sizes) to each detection, and count the objects.

    A detection gets ``class`` (index of its category in ``categories``) and, for each kind
    (``bbox``, ``segm``), ``KIND_hits`` and ``KIND_ignored``: integers whose bit k is set where it
    is right, or not counted, at the k-th IoU threshold. COCO counts the hundred best detections of
    a class in an image; the others have ``class`` -1.

    Args:
        ground_truth: a ``COCO`` of pycocotools or faster-coco-eval; its masks become run-length
            codes.
        detections: COCO result list, changed in place.

    Returns:
        (images, categories) int64: objects that are no crowd, in the order of ``image_ids``.
    """
    rows = {image: row for row, image in enumerate(image_ids)}
    classes = {category: index for index, category in enumerate(categories)}
    counts = np.zeros((len(image_ids), len(categories)), np.int64)
    for detection in detections:
        detection["class"] = -1
    for kind in kinds:
        with redirect_stdout(io.StringIO()):
            evaluation = COCOeval(ground_truth, results_of(ground_truth, detections, kind), kind)
            evaluation.params.imgIds, evaluation.params.catIds = list(image_ids), list(categories)
            evaluation.params.areaRng = evaluation.params.areaRng[:1]
            evaluation.evaluate()
        for image in filter(None, evaluation.evalImgs):
            class_index, ignored = classes[image["category_id"]], image["dtIgnore"].astype(bool)
            objects = len(image["gtIgnore"]) - sum(image["gtIgnore"])
            counts[rows[image["image_id"]], class_index] = objects
            hits = BITS @ ((image["dtMatches"] > 0) & ~ignored)
            for number, hit, ignore in zip(image["dtIds"], hits, BITS @ ignored, strict=True):
                detection = detections[number - 1]  # results are numbered in their order
                detection["class"] = class_index
                detection[f"{kind}_hits"], detection[f"{kind}_ignored"] = int(hit), int(ignore)
    return counts


def results_of(ground_truth: Any, detections: Sequence[dict[str, Any]], kind: str) -> Any:
    """A COCO result list as an object of the ground truth's type, without masks for ``bbox`` and
    without boxes for ``segm`` (so that the area of a result is its mask's)."""
    unused = "bbox" if kind == "segm" else "segmentation"
    if detections:
        return ground_truth.loadRes(
            [
                {name: detection[name] for name in detection if name != unused}
                for detection in detections
            ]
        )
    empty = type(ground_truth)()  # ``loadRes`` needs a result
    empty.dataset = {**ground_truth.dataset, "annotations": []}
    empty.createIndex()
    return empty
