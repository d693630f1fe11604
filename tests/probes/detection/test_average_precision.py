"""AP over resamples of images is pycocotools' AP of the resampled images."""

import copy
from typing import Any

import numpy as np
import pytest
from pycocotools import mask as mask_api

from probes.detection.average_precision import Matches, image_f1
from probes.detection.coco import add_matches, mean_ap
from probes.detection.probe import BOXES
from reports.records import to_columns
from tests.coco_reference import as_coco, evaluate

CATEGORIES = [3, 7, 9]
SIDE = 128


def mask_of(box: np.ndarray) -> dict:
    x, y, w, h = box.astype(int)
    picture = np.zeros((SIDE, SIDE), np.uint8, order="F")
    picture[y : y + max(h, 1), x : x + max(w, 1)] = 1
    return {"size": [SIDE, SIDE], "counts": mask_api.encode(picture)["counts"].decode()}


def scene(seed: int, images: int = 14) -> tuple[dict, list[dict]]:
    """Random ground truth (with crowds and empty images) and detections, many close to an object.

    Scores have no ties.
    """
    rng = np.random.default_rng(seed)
    objects, detections = [], []

    def random_box() -> np.ndarray:
        return np.concatenate([rng.uniform(0, 60, 2), rng.uniform(6, 60, 2)])

    def detect(image: int, box: np.ndarray, category: int | None = None) -> None:
        detections.append(
            {
                "image_id": image,
                "category_id": category or int(rng.choice(CATEGORIES)),
                "bbox": box.tolist(),
                "score": float(rng.random()),
                "segmentation": mask_of(box),
            }
        )

    for image in range(1, images + 1):
        for _ in range(rng.integers(0, 5)):
            box, category = random_box().round(), int(rng.choice(CATEGORIES))
            objects.append(
                {
                    "id": len(objects) + 1,
                    "image_id": image,
                    "category_id": category,
                    "bbox": box.tolist(),
                    "area": float(box[2] * box[3]),
                    "iscrowd": int(rng.random() < 0.15),
                    "segmentation": mask_of(box),
                }
            )
            for _ in range(rng.integers(0, 4)):
                close = np.clip(box + rng.normal(0, 3, 4), 1, 63)
                detect(image, close, category if rng.random() < 0.8 else None)
        for _ in range(rng.integers(0, 4)):
            detect(image, random_box())
    return dataset_of(range(1, images + 1), objects), detections


def dataset_of(ids, objects: list[dict]) -> dict:
    return {
        "images": [{"id": number, "height": SIDE, "width": SIDE} for number in ids],
        "annotations": objects,
        "categories": [{"id": category, "name": str(category)} for category in CATEGORIES],
        "info": {},
    }


def reference(evaluation: Any) -> np.ndarray:
    """pycocotools' AP at each IoU threshold."""
    # (thresholds, recalls, classes), all areas, 100 detections
    precision = evaluation.eval["precision"][:, :, :, 0, 2]
    return np.array([level[level > -1].mean() for level in precision])


def repeat(dataset: dict, detections: list[dict], times: np.ndarray) -> tuple[dict, list[dict]]:
    """The dataset with ``times[i]`` copies of image i."""
    ids, objects, results = [], [], []
    for copy_number in range(int(times.max())):
        for image in np.flatnonzero(times > copy_number) + 1:
            ids.append(copy_number * 1000 + int(image))
            for each in dataset["annotations"]:
                if each["image_id"] == image:
                    objects.append({**each, "image_id": ids[-1], "id": len(objects) + 1})
            results += [{**d, "image_id": ids[-1]} for d in detections if d["image_id"] == image]
    return dataset_of(ids, objects), results


@pytest.mark.parametrize("kind", ["bbox", "segm"])
@pytest.mark.parametrize("seed", range(4))
def test_scores_are_those_of_pycocotools(seed, kind):
    """Detections in other images do not count, and no object is large."""
    dataset, detections = scene(seed)
    before, images = copy.deepcopy(detections), list(range(1, 12))
    scores = mean_ap(as_coco(dataset), detections, images, CATEGORIES, kind)
    stats = evaluate(dataset, detections, kind, images).stats[:5]
    names = [name.replace("bbox", kind) for name in BOXES][:5]
    assert scores == pytest.approx(dict(zip(names, 100 * stats, strict=True)), abs=1e-9)
    assert 0 < scores[f"{kind}_mAP"] < 100 and detections == before


@pytest.mark.parametrize("kind", ["bbox", "segm"])
@pytest.mark.parametrize("seed", range(4))
def test_average_precision_of_resamples_is_pycocotools(seed, kind):
    dataset, detections = scene(seed)
    ids = [image["id"] for image in dataset["images"]]
    matched = copy.deepcopy(detections)
    counts = add_matches(as_coco(dataset), matched, ids, CATEGORIES, ("bbox", "segm"))
    assert counts.sum() == sum(not each["iscrowd"] for each in dataset["annotations"])
    matches = Matches(np.array(ids), counts, to_columns(matched), kind)
    rng = np.random.default_rng(seed)
    resampled = [rng.integers(0, len(ids), len(ids)) for _ in range(3)]
    weights = [np.bincount(each, minlength=len(ids)) for each in resampled]
    weights = np.stack([np.ones(len(ids)), *weights])
    for times, precision in zip(weights, matches.precision(weights), strict=True):
        resample = repeat(dataset, detections, times.astype(int))
        expected = reference(evaluate(*resample, kind))
        assert precision == pytest.approx(expected, abs=1e-9)


def test_a_resample_without_objects_has_no_score_and_one_without_hits_has_zero():
    detection = {"image_id": 1, "class": 0, "score": 0.5, "bbox_hits": 0, "bbox_ignored": 0}
    matches = Matches(np.array([1, 2]), np.array([[1], [0]]), to_columns([detection]), "bbox")
    precision = matches.precision(np.array([[1.0, 1.0], [0.0, 2.0]]))
    assert (precision[0] == 0).all() and np.isnan(precision[1]).all()


def test_f_measure_of_an_image():
    detections = [
        {"image_id": 1, "score": 0.9, "bbox_hits": 1},
        {"image_id": 1, "score": 0.8, "bbox_hits": 0},
        {"image_id": 1, "score": 0.1, "bbox_hits": 1},
        {"image_id": 2, "score": 0.9, "bbox_hits": 0, "bbox_ignored": 1},
    ]
    scores = image_f1(np.array([1, 2, 3]), np.array([2, 1, 0]), to_columns(detections))
    assert scores[:2].tolist() == [50.0, 0.0] and np.isnan(scores[2])


def test_detections_past_the_hundredth_are_not_looked_at():
    many = [
        {"image_id": 1, "category_id": 3, "bbox": [0, 0, 1, 1], "score": s / 200}
        for s in range(120)
    ]
    add_matches(as_coco(dataset_of([1], [])), many, [1], [3], ("bbox",))
    assert [detection["class"] for detection in many] == [-1] * 20 + [0] * 100
