"""Metrics over resamples of images are those of the resampled images, by independent means."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import jaccard_score, recall_score

import probes.catalog  # noqa: F401  registers the metrics of every kind
from reports.per_image import image_scores
from reports.records import to_columns

RNG = np.random.default_rng(0)
IMAGES = np.array([f"{n}.png" for n in (3, 1, 2, 0, 4)])  # not sorted, on purpose
# how often each resample has each image, in sorted order
TIMES = np.array([[2, 0, 1, 1, 1], [1, 1, 1, 1, 1], [0, 5, 0, 0, 0]])


def metrics_of(kind: str, **arrays) -> dict[str, np.ndarray]:
    """Metric → its value over each resample."""
    scores = image_scores(kind, {"image": IMAGES, **arrays})
    assert scores.images == tuple(sorted(IMAGES))
    return {name: compute(TIMES) for name, compute in scores.metrics.items()}


def resamples(values: np.ndarray) -> list[np.ndarray]:
    return [np.repeat(values[np.argsort(IMAGES)], times, axis=0) for times in TIMES]


def test_segmentation_is_scored_from_all_pixels_of_a_resample():
    labels, predictions = RNG.integers(0, 4, (5, 200)), RNG.integers(0, 4, (5, 200))
    labels[labels == 3] = 2  # class 3 is predicted but is in no label
    count = lambda maps: np.stack([np.bincount(each[each >= 0], minlength=4) for each in maps])
    correct = np.where(labels == predictions, labels, -1)
    metrics = metrics_of(
        "segmentation",
        intersection=count(correct),
        prediction=count(predictions),
        label=count(labels),
    )
    for index, (label, guess) in enumerate(
        zip(resamples(labels), resamples(predictions), strict=True)
    ):
        pixels = label.ravel(), guess.ravel()
        iou = jaccard_score(*pixels, average="macro")
        accuracy = recall_score(*pixels, average="macro", labels=[0, 1, 2])
        assert metrics["mIoU"][index] == pytest.approx(100 * iou)
        assert metrics["mAcc"][index] == pytest.approx(100 * accuracy)
        assert metrics["aAcc"][index] == pytest.approx(100 * (label == guess).mean())


def test_depth_is_the_mean_over_images_without_empty_ones():
    values = RNG.uniform(0.1, 0.5, 5)
    values[2] = np.nan
    metrics = metrics_of("depth", abs_rel=values, pixels=np.array([9, 9, 0, 9, 9]))
    assert metrics["abs_rel"] == pytest.approx([np.nanmean(each) for each in resamples(values)])


def test_normals_are_those_of_all_pixels_of_a_resample():
    errors = [RNG.gamma(2.0, 10.0, RNG.integers(20_000, 90_000)).clip(0, 180) for _ in IMAGES]
    means = np.array([error.mean() for error in errors])
    metrics = metrics_of(
        "normals",
        pixels=np.array([len(error) for error in errors]),
        normal_mean=means,
        normal_30=np.array([100 * (error < 30).mean() for error in errors]),
        error_histogram=np.stack([np.histogram(error, 1800, (0, 180))[0] for error in errors]),
    )
    for index, images in enumerate(resamples(np.arange(5))):
        pooled = np.concatenate([errors[image] for image in images])
        assert metrics["normal_mean"][index] == pytest.approx(pooled.mean())
        assert metrics["normal_30"][index] == pytest.approx(100 * (pooled < 30).mean())
        assert metrics["normal_median"][index] == pytest.approx(np.median(pooled), abs=0.01)
        assert metrics["normal_image_mean"][index] == pytest.approx(means[images].mean())


def test_a_median_is_not_computed_from_those_of_images():
    error, pixels = RNG.uniform(10, 50, 5), RNG.integers(10, 99, 5)
    metrics = metrics_of("normals", normal_mean=error, normal_median=error, pixels=pixels)
    assert "normal_median" not in metrics


def recalls(ranks: np.ndarray, k: int) -> list[float]:
    return [100 * (each[each >= 0] < k).mean() for each in resamples(ranks)]


def test_classification_and_retrieval_count_ranks():
    rank = np.array([0, 4, 0, 6, 1])
    metrics = metrics_of("classification", rank=rank, label=rank)
    for k in (1, 5):
        assert metrics[f"top{k}"] == pytest.approx(recalls(rank, k))
    captions = np.array([[0, 3], [9, -1], [0, 0], [1, 12], [4, -1]])
    metrics = metrics_of("image-text", i2t_rank=rank, t2i_rank=captions)
    for k in (1, 5, 10):
        assert metrics[f"t2i_R@{k}"] == pytest.approx(recalls(captions, k))
        assert metrics[f"i2t_R@{k}"] == pytest.approx(recalls(rank, k))


def test_pairs_are_resampled_by_their_images():
    """A resample of images has each pair as often as the product of its images' counts."""
    points, right = np.full(5, 10), np.arange(5)
    pairs = np.array([("a", "b"), ("b", "c"), ("a", "c"), ("c", "d"), ("a", "d")])
    arrays = {"points": points, "right_0.05": right, "right_0.1": right, "unit": pairs}
    order = {"image": np.array([f"{number}" for number in range(5)])}
    scores = image_scores("correspondence", {**order, **arrays})
    assert scores.units == ("a", "b", "c", "d") and len(scores.images) == 5
    weights = np.array([[2, 1, 1, 0], [1, 1, 1, 1]])
    expected = [10 * (2 * 0 + 1 * 1 + 2 * 2) / 5, 10 * right.mean()]
    assert scores.metrics["PCK@0.1"](weights) == pytest.approx(expected)


def test_detections_without_matches_give_no_interval():
    arrays = {"image": IMAGES, "image_id": np.arange(5)}
    assert image_scores("detection", arrays, to_columns([])) is None
    assert image_scores("some new kind", arrays) is None
