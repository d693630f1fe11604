"""COCO's scores as pycocotools' own demo computes them."""

from __future__ import annotations

import copy
import io
from collections.abc import Sequence
from contextlib import redirect_stdout

from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval


def as_coco(dataset: dict) -> COCO:
    """The content of a file of annotations in pycocotools' form."""
    with redirect_stdout(io.StringIO()):
        coco = COCO()
        coco.dataset = copy.deepcopy(dataset)
        coco.createIndex()
    return coco


def evaluate(
    dataset: dict, detections: list[dict], kind: str, images: Sequence[int] = ()
) -> COCOeval:
    """The evaluation of "bbox" or "segm" on some images, or on all."""
    coco = as_coco(dataset)
    unused = "bbox" if kind == "segm" else "segmentation"
    results = [{key: value for key, value in each.items() if key != unused} for each in detections]
    with redirect_stdout(io.StringIO()):
        evaluation = COCOeval(coco, coco.loadRes(results), kind)
        if images:
            evaluation.params.imgIds = images
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return evaluation
