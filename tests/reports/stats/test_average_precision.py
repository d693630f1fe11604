"""AP over draws of images is pycocotools' AP of those images, however often each is drawn."""

from __future__ import annotations

import copy
import io
from contextlib import redirect_stdout

import numpy as np
import pytest
from pycocotools import mask as mask_api
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from probes.detection.matches import add_matches
from reports.detections import to_columns
from reports.stats.average_precision import Matches, image_f1

CATEGORIES = [3, 7, 9]


def scene(seed: int, images: int = 14) -> tuple[dict, list[dict]]:
    """Random truth (with crowds, and images without objects) and detections, many near an object,
    scores without ties."""
    rng = np.random.default_rng(seed)
    side = 64

    def mask(box: np.ndarray) -> dict:
        x, y, w, h = box.astype(int)
        picture = np.zeros((side, side), np.uint8, order="F")
        picture[y : y + max(h, 1), x : x + max(w, 1)] = 1
        code = mask_api.encode(picture)
        return {"size": [side, side], "counts": code["counts"].decode()}

    objects, detections = [], []
    for image in range(1, images + 1):
        for _ in range(rng.integers(0, 5)):
            box = np.concatenate([rng.uniform(0, 30, 2), rng.uniform(6, 30, 2)]).round()
            one = {
                "id": len(objects) + 1,
                "image_id": image,
                "category_id": int(rng.choice(CATEGORIES)),
                "bbox": box.tolist(),
                "area": float(box[2] * box[3]),
                "iscrowd": int(rng.random() < 0.15),
                "segmentation": mask(box),
            }
            objects.append(one)
            for _ in range(rng.integers(0, 4)):
                near = np.clip(box + rng.normal(0, 2.5, 4), 1, 33)
                category = one["category_id"] if rng.random() < 0.8 else int(rng.choice(CATEGORIES))
                detections.append(detection(image, category, near, rng, mask))
        for _ in range(rng.integers(0, 4)):
            anywhere = np.concatenate([rng.uniform(0, 30, 2), rng.uniform(6, 30, 2)])
            detections.append(detection(image, int(rng.choice(CATEGORIES)), anywhere, rng, mask))
    truth = {
        "images": [{"id": n, "height": side, "width": side} for n in range(1, images + 1)],
        "annotations": objects,
        "categories": [{"id": c, "name": str(c)} for c in CATEGORIES],
        "info": {},
    }
    return truth, detections


def detection(image, category, box, rng, mask) -> dict:
    return {
        "image_id": image,
        "category_id": category,
        "bbox": [float(v) for v in box],
        "score": float(rng.random()),
        "segmentation": mask(box),
    }


def as_coco(truth: dict) -> COCO:
    with redirect_stdout(io.StringIO()):
        coco = COCO()
        coco.dataset = copy.deepcopy(truth)
        coco.createIndex()
    return coco


def reference(truth: dict, detections: list[dict], kind: str) -> np.ndarray:
    """pycocotools' AP at each IoU threshold."""
    with redirect_stdout(io.StringIO()):
        coco = as_coco(truth)
        left_out = "bbox" if kind == "segm" else "segmentation"
        found = coco.loadRes(
            [{k: v for k, v in one.items() if k != left_out} for one in copy.deepcopy(detections)]
        )
        evaluation = COCOeval(coco, found, kind)
        evaluation.evaluate()
        evaluation.accumulate()
    precision = evaluation.eval["precision"][
        :, :, :, 0, 2
    ]  # (thresholds, recalls, classes), all areas, 100 detections
    return np.array([level[level > -1].mean() for level in precision])


def repeated(truth: dict, detections: list[dict], times: np.ndarray) -> tuple[dict, list[dict]]:
    """The data set in which image i stands ``times[i]`` times."""
    made = {**truth, "images": [], "annotations": []}
    found = []
    for copy_number in range(int(times.max())):
        for image in truth["images"]:
            if times[image["id"] - 1] <= copy_number:
                continue
            identity = copy_number * 1000 + image["id"]
            made["images"].append({**image, "id": identity})
            for one in truth["annotations"]:
                if one["image_id"] == image["id"]:
                    made["annotations"].append(
                        {**one, "image_id": identity, "id": len(made["annotations"]) + 1}
                    )
            found += [
                {**one, "image_id": identity}
                for one in detections
                if one["image_id"] == image["id"]
            ]
    return made, found


@pytest.mark.parametrize("kind", ["bbox", "segm"])
@pytest.mark.parametrize("seed", range(4))
def test_average_precision_of_draws_is_pycocotools(seed, kind):
    truth, detections = scene(seed)
    ids = [image["id"] for image in truth["images"]]
    kept = copy.deepcopy(detections)
    counts = add_matches(as_coco(truth), kept, ids, CATEGORIES, ("bbox", "segm"))
    assert counts.sum() == sum(not one["iscrowd"] for one in truth["annotations"])
    matches = Matches(np.array(ids), counts, to_columns(kept), kind)
    rng = np.random.default_rng(seed)
    draws = np.stack(
        [
            np.ones(len(ids)),
            *(
                np.bincount(rng.integers(0, len(ids), len(ids)), minlength=len(ids))
                for _ in range(3)
            ),
        ]
    )
    found = matches.precision(draws)
    for weights, precision in zip(draws, found, strict=True):
        expected = reference(*repeated(truth, detections, weights.astype(int)), kind)
        assert precision == pytest.approx(expected, abs=1e-9)


def test_a_draw_without_objects_has_no_score_and_one_without_hits_has_zero():
    matches = Matches(
        np.array([1, 2]),
        np.array([[1], [0]]),
        to_columns([{"image_id": 1, "class": 0, "score": 0.5, "bbox_hits": 0, "bbox_ignored": 0}]),
        "bbox",
    )
    found = matches.precision(np.array([[1.0, 1.0], [0.0, 2.0]]))
    assert (found[0] == 0).all() and np.isnan(found[1]).all()


def test_f_measure_of_an_image():
    found = [
        {"image_id": 1, "score": 0.9, "bbox_hits": 1},
        {"image_id": 1, "score": 0.8, "bbox_hits": 0},
        {"image_id": 1, "score": 0.1, "bbox_hits": 1},
        {"image_id": 2, "score": 0.9, "bbox_hits": 0, "bbox_ignored": 1},
    ]
    scores = image_f1(np.array([1, 2, 3]), np.array([2, 1, 0]), to_columns(found))
    assert scores[:2].tolist() == [50.0, 0.0] and np.isnan(scores[2])
