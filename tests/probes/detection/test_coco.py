"""COCO's matching, detection by detection, against pycocotools' own."""

from __future__ import annotations

import copy

import pytest

from probes.detection.coco import add_matches
from tests.coco_reference import as_coco, evaluate
from tests.probes.detection.test_average_precision import CATEGORIES, scene


@pytest.mark.parametrize("kind", ["bbox", "segm"])
def test_each_detection_matches_as_in_pycocotools(kind):
    ground_truth, detections = scene(11)
    ids = [image["id"] for image in ground_truth["images"]]
    mine = copy.deepcopy(detections)
    add_matches(as_coco(ground_truth), mine, ids, CATEGORIES, (kind,))
    evaluation = evaluate(ground_truth, detections, kind)
    seen = 0
    for detection in evaluation.evalImgs[
        : len(CATEGORIES) * len(evaluation.params.areaRng) * len(ids)
    ]:
        if detection is None or detection["aRng"] != evaluation.params.areaRng[0]:
            continue
        for column, identity in enumerate(detection["dtIds"]):
            scored = mine[identity - 1]  # loadRes numbers results in their order
            hits = [bool(scored[f"{kind}_hits"] >> level & 1) for level in range(10)]
            ignored = [bool(scored[f"{kind}_ignored"] >> level & 1) for level in range(10)]
            matched, ignored_by_coco = (
                detection["dtMatches"][:, column] > 0,
                detection["dtIgnore"][:, column].astype(bool),
            )
            assert (
                hits == (matched & ~ignored_by_coco).tolist()
                and ignored == ignored_by_coco.tolist()
            )
            seen += 1
    assert seen == len(detections)


def test_detections_past_the_hundredth_are_not_looked_at():
    ground_truth = {
        "images": [{"id": 1, "height": 9, "width": 9}],
        "annotations": [],
        "categories": [{"id": 3, "name": "a"}],
        "info": {},
    }
    many = [
        {"image_id": 1, "category_id": 3, "bbox": [0, 0, 1, 1], "score": s / 200}
        for s in range(120)
    ]
    add_matches(as_coco(ground_truth), many, [1], [3], ("bbox",))
    assert [detection["class"] for detection in many] == [-1] * 20 + [0] * 100
