"""``knn``: DINO's votes, and a number of neighbours that val has no say in."""

import pytest
import torch
from torch.nn.functional import normalize

import probes.catalog  # noqa: F401
from cliptex_common.errors import UserError
from probes.image_level.knn import votes
from probes.image_level.probe import KNN
from probes.registry import DATASETS
from tests.probes.datasets import make
from tests.probes.whole_images import context, with_wrong_labels


def test_votes_are_dinos():
    random = torch.Generator().manual_seed(0)
    queries, memory = (normalize(torch.randn(n, 6, generator=random), dim=1) for n in (9, 40))
    labels = torch.randint(5, (40,), generator=random)
    ballots = votes(queries, memory, labels, [3, 10], 0.07, 5)
    for k, ballot in zip((3, 10), ballots, strict=True):
        for query, row in zip(queries, ballot, strict=True):
            similar = (memory @ query).double()
            expected = torch.zeros(5, dtype=torch.float64)
            for index in similar.argsort(descending=True)[:k]:
                expected[labels[index]] += torch.exp(similar[index] / 0.07)
            torch.testing.assert_close(row, expected, rtol=1e-5, atol=0)


def test_the_number_of_neighbours_is_chosen_on_train(tmp_path):
    root = make.make_imagefolder(tmp_path, 6, 3)
    task = context(KNN, DATASETS["imagefolder"], root, neighbours=(1, 3, 100))
    result = KNN.run(task)
    assert result.metrics["top1"] == 100.0 and (result.per_image["rank"] == 0).all()
    assert "best of 3 on 4 held-out training images (top1 100)" in result.notes[0]
    relabelled = KNN.run(with_wrong_labels(task))
    assert relabelled.notes == result.notes and relabelled.metrics["top1"] == 0


def test_one_image_a_class_leaves_none_to_choose_on(tmp_path):
    root = make.make_imagefolder(tmp_path, 1, 2)
    with pytest.raises(UserError, match="set neighbours=10"):
        KNN.run(context(KNN, DATASETS["imagefolder"], root))
    fixed = context(KNN, DATASETS["imagefolder"], root, neighbours=(1,))
    assert KNN.run(fixed).metrics["top1"] == 100
