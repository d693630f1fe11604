"""A share of train: its images, and the numbers of probes that train on it."""

import pickle
from dataclasses import replace

import numpy as np
import pytest

from probes.datasets.base import with_share
from probes.datasets.check import prepare
from probes.registry import DATASETS
from tests.probes import tiny_coco
from tests.probes.datasets.make import make_imagefolder

pytestmark = pytest.mark.integration


def test_a_share_is_nested_stratified_and_depends_on_the_content(tmp_path):
    data = prepare(DATASETS["imagefolder"], make_imagefolder(tmp_path / "a", 10, 1))
    train = data.samples["train"]
    assert with_share(data, 1.0, 0) is data
    half, tenth = with_share(data, 0.5, 0), with_share(data, 0.01, 0)
    for part, count in ((half, 5), (tenth, 1)):
        targets = [sample.target for sample in part.samples["train"]]
        assert np.bincount(targets).tolist() == [count] * len(data.classes)
        assert targets == sorted(targets)
        assert [part.full_train[index] for index in part.train_indices] == part.samples["train"]
        assert part.samples["val"] == data.samples["val"]
        assert part.encoded("train") == tuple(train)
    assert set(tenth.train_indices) < set(half.train_indices)
    assert with_share(data, 0.5, 0) == half
    assert with_share(data, 0.5, 1).train_indices != half.train_indices
    shuffled = replace(data, samples={**data.samples, "train": train[::-1]})
    images = {sample.image for sample in with_share(shuffled, 0.5, 0).samples["train"]}
    assert images == {sample.image for sample in half.samples["train"]}


def test_a_dataset_travels_by_its_name(tmp_path):
    """Its spec has functions, which cannot travel."""
    data = replace(tiny_coco.prepared(tiny_coco.write(tmp_path)), notes=("a",))
    share = replace(data, trained_on=with_share(data, 0.5, 0))
    with pytest.raises((AttributeError, pickle.PicklingError), match="lambda"):
        pickle.dumps(share.spec)
    travelled = pickle.loads(pickle.dumps(share))
    assert travelled == share
    assert travelled.spec is travelled.trained_on.spec is DATASETS[data.name]
