"""Retrieval of a class against scikit-learn, query by query, on real embeddings and with ties."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from sklearn.metrics import average_precision_score
from sklearn.neighbors import NearestNeighbors

from cliptex_common.errors import UserError
from probes.datasets.base import Sample
from probes.image_level import class_retrieval
from probes.image_level.probe import CLASS_RETRIEVAL
from probes.registry import DATASETS
from tests.probes.datasets import make
from tests.probes.whole_images import context


@pytest.fixture
def task(tmp_path):
    root = make.make_imagefolder(tmp_path, 1, 6)
    return context(CLASS_RETRIEVAL, DATASETS["imagefolder"], root)


def with_embeddings(monkeypatch, vectors):
    monkeypatch.setattr(class_retrieval, "encode_split", lambda context, split: vectors)


def labelled(task, labels):
    samples = [Sample(f"{n:03}.jpg", label) for n, label in enumerate(labels)]
    return replace(task, data=replace(task.data, samples={"val": samples}))


@pytest.mark.parametrize("tied", [False, True])
def test_scores_are_those_of_scikit_learn(task, monkeypatch, tied):
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 2, 40).tolist()
    vectors = rng.normal(size=(40, 3)) + np.eye(3)[labels]
    vectors = np.sign(vectors) if tied else vectors
    with_embeddings(monkeypatch, torch.from_numpy(vectors).float())
    monkeypatch.setattr(class_retrieval, "CELLS", 300)  # seven queries at once
    result = CLASS_RETRIEVAL.run(labelled(task, labels))
    unit = vectors.astype(np.float32).astype(float)
    unit /= np.linalg.norm(unit, axis=1, keepdims=True)
    cosines, right = (unit @ unit.T).round(10), np.equal.outer(labels, labels)
    others = ~np.eye(40, dtype=bool)
    expected = [
        average_precision_score(right[query, rest], cosines[query, rest])
        for query, rest in enumerate(others)
    ]
    assert result.per_image["AP"] == pytest.approx(100 * np.array(expected))
    assert result.metrics["mAP"] == pytest.approx(100 * np.mean(expected))
    if not tied:
        search = NearestNeighbors(n_neighbors=10, metric="cosine").fit(unit)
        neighbours = search.kneighbors(return_distance=False)  # without the query itself
        for k in (1, 5, 10):
            hits = right[np.arange(40)[:, None], neighbours[:, :k]].any(axis=1)
            assert result.metrics[f"recall@{k}"] == pytest.approx(100 * hits.mean())


def test_the_floor_is_what_embeddings_that_are_all_equal_reach(task, monkeypatch):
    with_embeddings(monkeypatch, torch.ones(12, 3))
    result = CLASS_RETRIEVAL.run(labelled(task, [0] * 3 + [1] * 9))
    assert f"mAP {result.metrics['mAP']:.1f}" in result.notes[1]
    # the expected rank is that of the first right one in a random order
    first = result.per_image["first_rank"]
    assert first[0] == pytest.approx(9 / 3) and first[3] == pytest.approx(3 / 9)


def test_several_right_classes_and_images_without_a_partner(task, monkeypatch):
    with_embeddings(monkeypatch, torch.eye(4) + 0.1)
    result = CLASS_RETRIEVAL.run(labelled(task, [[0, 1], 1, [0], 2]))
    assert result.per_image["image"].tolist() == ["000.jpg", "001.jpg", "002.jpg"]
    assert "3 queries" in result.notes[0] and "1 images are alone" in result.notes[0]
    with pytest.raises(UserError, match="no class of imagefolder has two images"):
        CLASS_RETRIEVAL.run(labelled(task, [0, 1, 2]))
