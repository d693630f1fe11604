"""Metrics over a draw of images are those of the drawn images, by independent means."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import jaccard_score, recall_score

from reports.detections import to_columns
from reports.stats.per_image import image_scores

RNG = np.random.default_rng(0)
IMAGES = np.array([f"{n}.png" for n in (3, 1, 2, 0, 4)])  # not sorted, on purpose
TIMES = np.array(
    [[2, 0, 1, 1, 1], [1, 1, 1, 1, 1], [0, 5, 0, 0, 0]]
)  # of the images in sorted order


def resample(values: np.ndarray, times: np.ndarray) -> np.ndarray:
    return np.repeat(values[np.argsort(IMAGES, kind="stable")], times, axis=0)


def test_segmentation_is_scored_from_all_pixels_of_the_draw():
    labels, predictions = RNG.integers(0, 4, (5, 200)), RNG.integers(0, 4, (5, 200))
    labels[labels == 3] = 2  # class 3 is predicted but is in no label
    areas = {
        "intersection": np.stack(
            [np.bincount(t[t == p], minlength=4) for t, p in zip(labels, predictions, strict=True)]
        ),
        "prediction": np.stack([np.bincount(p, minlength=4) for p in predictions]),
        "label": np.stack([np.bincount(t, minlength=4) for t in labels]),
    }
    scores = image_scores("segmentation", {"image": IMAGES, **areas})
    assert scores is not None and scores.images == tuple(sorted(IMAGES))
    for times, iou, acc, overall in zip(
        TIMES, *(scores.metrics[m](TIMES) for m in ("mIoU", "mAcc", "aAcc")), strict=True
    ):
        target, guess = resample(labels, times).ravel(), resample(predictions, times).ravel()
        assert iou == pytest.approx(100 * jaccard_score(target, guess, average="macro"))
        assert acc == pytest.approx(
            100 * recall_score(target, guess, average="macro", labels=[0, 1, 2])
        )
        assert overall == pytest.approx(100 * (target == guess).mean())


def test_depth_is_the_mean_over_images_without_empty_ones():
    values = RNG.uniform(0.1, 0.5, 5)
    values[2] = np.nan
    scores = image_scores(
        "depth", {"image": IMAGES, "abs_rel": values, "pixels": np.array([9, 9, 0, 9, 9])}
    )
    assert scores is not None
    expected = [np.nanmean(resample(values, times)) for times in TIMES]
    assert scores.metrics["abs_rel"](TIMES) == pytest.approx(expected)
    assert scores.each_sign == -1


def test_normals_are_those_of_all_pixels_of_the_draw():
    errors = [RNG.gamma(2.0, 10.0, RNG.integers(20_000, 90_000)).clip(0, 180) for _ in IMAGES]
    pixels = np.array([len(error) for error in errors])
    arrays = {
        "image": IMAGES,
        "pixels": pixels,
        "normal_mean": np.array([error.mean() for error in errors]),
        "normal_30": np.array([100 * (error < 30).mean() for error in errors]),
        "error_histogram": np.stack([np.histogram(error, 1800, (0, 180))[0] for error in errors]),
    }
    scores = image_scores("normals", arrays)
    assert scores is not None
    for number, times in enumerate(TIMES):
        pooled = np.concatenate(
            [errors[i] for i, k in zip(np.argsort(IMAGES), times, strict=True) for _ in range(k)]
        )
        computed = {name: compute(TIMES)[number] for name, compute in scores.metrics.items()}
        assert computed["normal_mean"] == pytest.approx(pooled.mean())
        assert computed["normal_30"] == pytest.approx(100 * (pooled < 30).mean())
        assert computed["normal_median"] == pytest.approx(np.median(pooled), abs=0.01)
        assert computed["normal_image_mean"] == pytest.approx(
            resample(arrays["normal_mean"], times).mean()
        )


def test_a_median_is_not_made_up_from_those_of_images():
    error, pixels = RNG.uniform(10, 50, 5), RNG.integers(10, 99, 5)
    scores = image_scores(
        "normals", {"image": IMAGES, "normal_mean": error, "normal_median": error, "pixels": pixels}
    )
    assert scores is not None and "normal_median" not in scores.metrics


def test_classification_and_retrieval_count_ranks():
    rank = np.array([0, 4, 0, 6, 1])
    scores = image_scores("classification", {"image": IMAGES, "rank": rank, "label": rank})
    assert scores is not None
    for k in (1, 5):
        assert scores.metrics[f"top{k}"](TIMES) == pytest.approx(
            [100 * (resample(rank, t) < k).mean() for t in TIMES]
        )
    many = np.array([[0, 3], [9, -1], [0, 0], [1, 12], [4, -1]])
    scores = image_scores("image-text", {"image": IMAGES, "i2t_rank": rank, "t2i_rank": many})
    assert scores is not None
    for k in (1, 5, 10):
        expected = [100 * (c[c >= 0] < k).mean() for t in TIMES for c in [resample(many, t)]]
        assert scores.metrics[f"t2i_R@{k}"](TIMES) == pytest.approx(expected)
        assert scores.metrics[f"i2t_R@{k}"](TIMES) == pytest.approx(
            [100 * (resample(rank, t) < k).mean() for t in TIMES]
        )


def test_detections_without_matches_give_no_interval():
    assert (
        image_scores("detection", {"image": IMAGES, "image_id": np.arange(5)}, to_columns([]))
        is None
    )
    assert image_scores("some new kind", {"image": IMAGES}) is None
