"""Several labels an image: metrics against scikit-learn, and the probes on VOC 2007's and COCO's
layouts of images whose colours are their labels."""

import json
from itertools import product

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import (
    average_precision_score,
    label_ranking_average_precision_score,
    precision_recall_curve,
)
from sklearn.neighbors import KNeighborsRegressor

from cliptex_common.errors import UserError
from probes.datasets.check import prepare
from probes.datasets.ground_truth import LabelSet
from probes.datasets.labels import VOC_CLASSES
from probes.image_level.label_sets import KNN, LINEAR, average_precisions, label_precisions
from probes.image_level.linear import Samples, train_linear, zero_heads
from probes.image_level.neighbours import votes
from probes.registry import DATASETS
from reports.per_image import image_scores
from tests.probes import tiny_coco
from tests.probes.datasets import make
from tests.probes.whole_images import context


def scored(seed=0, images=60, classes=4):
    """Scores with ties, labels with unknown ones, a class that no image has, and weights."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(-1, 2, (images, classes)).astype(np.int8)
    labels[:, -1] = np.minimum(labels[:, -1], 0)
    scores = (rng.normal(size=labels.shape) + labels).round(1).astype(np.float32)
    return scores, labels, rng.integers(0, 3, (2, images)).astype(float)


def test_precisions_are_those_of_scikit_learn_with_weights():
    scores, labels, weights = scored()
    areas, points = (
        average_precisions(each, scores, labels, weights) for each in ("mAP", "mAP_11")
    )
    for column, (row, weight) in product(range(3), enumerate(weights)):
        known = labels[:, column] >= 0
        data = labels[known, column], scores[known, column]
        area = average_precision_score(*data, sample_weight=weight[known])
        assert areas[row, column] == pytest.approx(100 * area)
        precision, recall, _ = precision_recall_curve(*data, sample_weight=weight[known])
        # without its last point, which no threshold has
        highest = [
            precision[:-1][recall[:-1] >= level - 1e-9].max() for level in np.linspace(0, 1, 11)
        ]
        assert points[row, column] == pytest.approx(100 * np.mean(highest))
    assert np.isnan(areas[:, 3]).all()


def test_the_score_of_an_image_is_scikit_learns_label_ranking_precision():
    scores, labels, _ = scored()
    labels = np.abs(labels)  # without unknown ones
    labels = labels[labels.any(axis=1)]
    scores = scores[: len(labels)]
    ours = np.nanmean(label_precisions(scores, labels), axis=1).mean()
    assert ours == pytest.approx(100 * label_ranking_average_precision_score(labels, scores))


def test_linear_is_a_logistic_regression_for_each_class():
    """Of scikit-learn, without a penalty, on classes that overlap; unknown labels are left out."""
    rng = np.random.default_rng(0)
    inputs = rng.normal(size=(300, 2)).astype(np.float32)
    labels = (inputs + rng.normal(size=(300, 2)) > 0).astype(np.float32)
    labels[:40, 1] = np.nan
    samples = Samples(torch.from_numpy(inputs), torch.from_numpy(labels), 2)
    settings = LINEAR.settings_type(
        epochs=100, batch_size=300, learning_rates=(1.0,), standardise=False
    )
    heads = zero_heads(samples, 1, settings, torch.device("cpu"))
    for _ in train_linear(heads, samples, settings.grid, settings, seed=0):
        pass
    for column in range(2):
        known = ~np.isnan(labels[:, column])
        expected = LogisticRegression(C=np.inf, tol=1e-8).fit(inputs[known], labels[known, column])
        weight = heads.weights[0][:, column].detach().numpy()
        assert weight == pytest.approx(expected.coef_[0], abs=0.03)


def test_knn_is_scikit_learns_regression_on_labels():
    rng = np.random.default_rng(0)
    memory, queries = (
        torch.nn.functional.normalize(torch.from_numpy(rng.normal(size=(n, 5))).float(), dim=1)
        for n in (40, 15)
    )
    labels = rng.integers(0, 2, (40, 3)).astype(np.float32)
    neighbours = KNeighborsRegressor(
        7, metric="cosine", weights=lambda distance: np.exp((1 - distance) / 0.07)
    ).fit(memory, labels)
    _, shares = votes(queries, memory, torch.from_numpy(labels), (3, 7), 0.07, 3)
    assert shares.numpy() == pytest.approx(neighbours.predict(queries), abs=1e-5)
    labels[:, 0] = np.nan
    (unknown,) = votes(queries, memory, torch.from_numpy(labels), [7], 0.07, 3)
    assert (unknown[:, 0] == 0).all()


def test_voc_2007_lists_what_is_difficult_as_unknown(tmp_path):
    root = make.make_voc2007(tmp_path)
    data = prepare(DATASETS["voc2007-labels"], root, partial=True)
    assert {split: len(samples) for split, samples in data.samples.items()} == {
        "train": 12,
        "val": 9,
    }
    first, second, third = (sample.target for sample in data.samples["val"][:3])
    assert (first, second) == (LabelSet([0], []), LabelSet([11, 14], []))
    assert third.unknown == [0]
    path = root / "ImageSets/Main/dog_test.txt"
    path.write_text("test000000 -1\n")
    with pytest.raises(UserError, match=r"dog_test\.txt has 1 of 9 images"):
        prepare(DATASETS["voc2007-labels"], root, partial=True)
    path.write_text("test000000 maybe\n")
    with pytest.raises(UserError, match=r"dog_test\.txt needs lines"):
        prepare(DATASETS["voc2007-labels"], root, partial=True)


def test_coco_labels_are_the_categories_of_the_annotations(tmp_path):
    root = tiny_coco.write(tmp_path, 4, 3)
    classes = DATASETS["coco-labels"].class_names(root)
    content = json.loads((root / "annotations/instances_val2017.json").read_text())
    names = {each["id"]: each["name"] for each in content["categories"]}
    samples = DATASETS["coco-labels"].list_samples(root, "val")
    for entry, sample in zip(content["images"], samples, strict=True):
        expected = {
            names[each["category_id"]]
            for each in content["annotations"]
            if each["image_id"] == entry["id"]
        }
        assert {classes[number] for number in sample.target.present} == expected
    assert samples[1].target.present == [], "an image without objects is a sample, too"


@pytest.mark.parametrize("probe", [LINEAR, KNN], ids=lambda probe: probe.name)
def test_probes_end_to_end_and_in_a_report(tmp_path, probe):
    task = context(probe, DATASETS["voc2007-labels"], make.make_voc2007(tmp_path / "voc"))
    result = probe.run(task)
    assert result.metrics["mAP"] > 95, "colours tell these classes"
    assert "held-out training images (mAP" in result.notes[0]
    assert "17 of 20 classes have no image in val" in result.notes
    scores = image_scores("multi-label", result.per_image)
    assert scores.classes.names == VOC_CLASSES
    assert np.flatnonzero(scores.classes.images).tolist() == [0, 11, 14]
    # scores that are all equal have the mAP of the note
    equal = {**result.per_image, "score": np.zeros_like(result.per_image["score"])}
    floor = image_scores("multi-label", equal).values()
    assert floor["mAP"] == pytest.approx(floor["mAP_11"])
    assert f"without features: mAP {floor['mAP']:.1f}" in result.notes[1]
