"""``knn``: DINO's votes, and a number of neighbours that val has no say in."""

import numpy as np
import pytest
import torch
from torch.nn.functional import normalize

import probes.catalog  # noqa: F401
from common.errors import UserError
from probes.image_level.knn import votes
from probes.image_level.probe import KNN
from probes.image_level.settings import KnnSettings
from probes.registry import DATASETS
from tests.probes.datasets import make
from tests.probes.whole_images import context


@pytest.fixture(autouse=True)
def own_home(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("CLIPTEX_HOME", str(tmp_path_factory.mktemp("home")))


def test_votes_are_dinos():
    random = torch.Generator().manual_seed(0)
    queries, memory = (normalize(torch.randn(n, 6, generator=random), dim=1) for n in (9, 40))
    labels = torch.randint(5, (40,), generator=random)
    found = votes(queries, memory, labels, KnnSettings(), [3, 10], 5, torch.device("cpu"))
    for k, ballot in zip((3, 10), found, strict=True):
        for query, got in zip(queries, ballot, strict=True):
            similar = (memory @ query).double()
            wanted = torch.zeros(5, dtype=torch.float64)
            for place in similar.argsort(descending=True)[:k]:
                wanted[labels[place]] += torch.exp(similar[place] / 0.07)
            torch.testing.assert_close(got, wanted, rtol=1e-5, atol=0)


def test_the_number_of_neighbours_is_chosen_on_train(tmp_path):
    root = make.make_imagefolder(tmp_path, 6, 3)
    around = context(KNN, DATASETS["imagefolder"], root, neighbours=(1, 3, 100))
    result = KNN.run(around)
    assert result.metrics == {"top1": 100.0} and (result.per_image["rank"] == 0).all()
    assert "best of 3 on 4 held-out training images (top1 100.0)" in result.notes[0]
    wrong = np.roll(np.arange(4), 1)
    turned = [type(s)(s.image, int(wrong[s.target])) for s in around.data.samples["val"]]
    around.data.samples["val"][:] = turned
    again = KNN.run(around)
    assert again.notes == result.notes and again.metrics["top1"] == 0


def test_one_image_a_class_leaves_nothing_to_choose_by(tmp_path):
    root = make.make_imagefolder(tmp_path, 1, 2)
    with pytest.raises(UserError, match="set neighbours=10"):
        KNN.run(context(KNN, DATASETS["imagefolder"], root))
    assert (
        KNN.run(context(KNN, DATASETS["imagefolder"], root, neighbours=(1,))).metrics["top1"] == 100
    )
