"""Dense scores against scikit-learn, mmseg's own metrics and plain numpy."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from mmseg.evaluation.metrics import DepthMetric
from sklearn.metrics import accuracy_score, jaccard_score, recall_score

from cliptex_common.metrics import angles
from probes.dense.losses import TaskScores
from probes.dense.segmentation import segmentation_scores
from reports.per_image import image_scores

seeds = st.integers(0, 2**32 - 1)


def pixels(array):
    return {"data": torch.as_tensor(np.asarray(array))}


def evaluate(metric, samples, size=None):
    for sample in samples:
        metric.process({}, [sample])
    return metric.evaluate(len(samples))


def segmentation(predictions, labels, classes, metric=None):
    metric = metric or TaskScores("segmentation")
    metric.dataset_meta = {"classes": tuple(f"c{i}" for i in range(classes))}
    samples = [
        {"image": f"{i}.png", "pred_sem_seg": pixels(p[None]), "gt_sem_seg": pixels(t[None])}
        for i, (p, t) in enumerate(zip(predictions, labels, strict=True))
    ]
    return metric, evaluate(metric, samples)


@settings(max_examples=40)
@given(seeds, st.integers(2, 7), st.integers(1, 4))
def test_segmentation_is_scikit_learns(seed, classes, images):
    random = np.random.default_rng(seed)
    shapes = [(int(random.integers(2, 9)), int(random.integers(2, 9))) for _ in range(images)]
    labels = [random.integers(0, classes, shape) for shape in shapes]
    predictions = [
        np.where(random.random(t.shape) < 0.5, t, random.integers(0, classes, t.shape))
        for t in labels
    ]
    for label in labels:
        label[random.random(label.shape) < 0.2] = 255
        label[0, 0] = 1
    metric, scores = segmentation(predictions, labels, classes)
    true, guess = (
        np.concatenate([each.ravel() for each in maps]) for maps in (labels, predictions)
    )
    true, guess = true[true != 255], guess[true != 255]
    present = sorted({*true, *guess})
    assert scores["mIoU"] == pytest.approx(
        100 * jaccard_score(true, guess, labels=present, average="macro")
    )
    recall = recall_score(true, guess, labels=sorted(set(true)), average="macro", zero_division=0)
    assert scores["mAcc"] == pytest.approx(100 * recall)
    assert scores["aAcc"] == pytest.approx(100 * accuracy_score(true, guess))
    assert metric.per_image["label"].shape == (images, classes)
    assert metric.per_image["label"].sum() == true.size == metric.per_image["prediction"].sum()
    absent = ", ".join(f"c{label}" for label in range(classes) if label not in present)
    assert not absent or absent in metric.notes[0]
    # the set's scores follow from the images' areas
    assert segmentation_scores(metric.per_image)[0] == scores


def depth(predictions, truths, metric):
    metric.dataset_meta = {}
    samples = [
        {"image": f"{i}.png", "pred_depth_map": pixels(p[None]), "gt_depth_map": pixels(t[None])}
        for i, (p, t) in enumerate(zip(predictions, truths, strict=True))
    ]
    return metric, evaluate(metric, samples)


@settings(max_examples=25)
@given(seeds)
def test_depth_is_mmsegs_and_numpys(seed):
    random = np.random.default_rng(seed)
    truths = [random.uniform(0, 12, (9, 11)).astype(np.float32) for _ in range(3)]
    for target in truths:
        target[random.random(target.shape) < 0.2] = 0
        target[4, 4] = 2.0
    predictions = [random.uniform(0.1, 10, t.shape).astype(np.float32) for t in truths]
    metric, ours = depth(predictions, truths, TaskScores("depth", min_depth=1e-3))
    _, theirs = depth(predictions, truths, DepthMetric(min_depth_eval=1e-3, max_depth_eval=10.0))
    for name, their_name, factor in (
        ("abs_rel", "abs_rel", 1),
        ("rmse", "rmse", 1),
        ("log10", "log10", 1),
        ("delta1", "d1", 100),
        ("delta2", "d2", 100),
        ("delta3", "d3", 100),
    ):
        assert ours[name] == pytest.approx(factor * theirs[their_name], rel=1e-4, abs=1e-3), name
    valid = (truths[0] > 1e-3) & (truths[0] < 10)
    assert metric.per_image["pixels"][0] == valid.sum()


def test_images_without_truth_are_named_and_not_scored():
    good, empty = np.full((4, 4), 2.0), np.zeros((4, 4))
    metric, scores = depth([good * 1.1, good], [good, empty], TaskScores("depth", min_depth=1e-3))
    assert scores["abs_rel"] == pytest.approx(0.1)
    assert metric.per_image["pixels"].tolist() == [16, 0] and np.isnan(metric.per_image["rmse"][1])
    assert "1 of 2" in metric.notes[0] and "1.png" in metric.notes[0]


def normals(predictions, truths, metric=None):
    metric = metric or TaskScores("normals")
    metric.dataset_meta = {}
    samples = [
        {"image": f"{i}.png", "pred_normal_map": pixels(p), "gt_normal_map": pixels(t)}
        for i, (p, t) in enumerate(zip(predictions, truths, strict=True))
    ]
    return metric, evaluate(metric, samples)


@settings(max_examples=25)
@given(seeds, st.floats(0.01, 2.0))
def test_normals_are_numpys_over_all_pixels(seed, noise):
    random = np.random.default_rng(seed)
    truths, predictions = [], []
    for height in (5, 9, 3):
        target = random.normal(size=(3, height, 8))
        target /= np.linalg.norm(target, axis=0)
        predictions.append(target + noise * random.normal(size=target.shape))
        truths.append(target * (random.random((height, 8)) < 0.8))
    metric, scores = normals(predictions, truths)
    errors = []
    for prediction, target in zip(predictions, truths, strict=True):
        valid = np.abs(target).sum(axis=0) > 0
        unit = prediction / np.linalg.norm(prediction, axis=0)
        errors.append(np.degrees(np.arccos(np.clip((unit * target).sum(axis=0), -1, 1)))[valid])
    pooled = np.concatenate(errors)
    assert scores["normal_mean"] == pytest.approx(pooled.mean(), abs=1e-4)
    assert scores["normal_median"] == pytest.approx(np.median(pooled), abs=3e-5)
    assert scores["normal_image_mean"] == pytest.approx(
        np.mean([error.mean() for error in errors]), abs=1e-4
    )
    for name, limit in (("normal_11.25", 11.25), ("normal_22.5", 22.5), ("normal_30", 30)):
        assert scores[name] == pytest.approx(100 * (pooled < limit).mean())
    assert metric.per_image["pixels"].sum() == pooled.size
    resampled = image_scores("normals", metric.per_image)
    assert resampled.value("normal_median") == scores["normal_median"], "as a report has it"
    # a second evaluation starts from nothing
    assert normals(predictions, truths, metric)[1] == scores


def test_a_batch_that_fails_counts_nowhere(monkeypatch):
    """Where memory ends within a batch, its halves are scored again."""
    random = np.random.default_rng(0)
    metric, other = (TaskScores("segmentation", hungarian=True) for _ in range(2))
    first, second = (pixels(random.integers(0, 3, (1, 4, 5))) for _ in range(2))
    batch = [
        {"image": "0.png", "pred_sem_seg": first, "gt_sem_seg": first},
        {"image": "1.png", "pred_sem_seg": first, "gt_sem_seg": second},
    ]
    for each in (metric, other):
        each.dataset_meta = {"classes": ("a", "b", "c")}
    score = metric.task.score
    calls = iter([False, True])  # the second image does not fit

    def failing(*maps):
        if next(calls, False):
            raise torch.OutOfMemoryError
        return score(*maps)

    monkeypatch.setattr(metric.task, "score", failing)
    with pytest.raises(torch.OutOfMemoryError):
        metric.process(None, batch)
    for half in (batch[:1], batch[1:]):
        metric.process(None, half)
    other.process(None, batch)
    assert metric.evaluate(2) == other.evaluate(2)


def test_small_angles_are_exact():
    angle = np.radians(0.001)
    turned, up = (
        torch.tensor([[np.sin(angle)], [0], [np.cos(angle)]]),
        torch.tensor([[0], [0], [1.0]]),
    )
    assert angles(turned, up).item() == pytest.approx(1e-3)
    assert angles(torch.tensor([[0], [0], [-2.0]]), up).item() == pytest.approx(180)
