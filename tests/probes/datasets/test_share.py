"""A share of train: its images, and the numbers of probes that train on it."""

import pickle
from dataclasses import replace

import numpy as np
import pytest

import probes.catalog  # noqa: F401
from probes.base import Cost
from probes.datasets.base import with_share
from probes.datasets.check import prepare
from probes.registry import DATASETS, PROBES
from tests.probes import tiny_coco, tiny_dense
from tests.probes.datasets.make import make_imagefolder
from tests.probes.tiny_mmlab import context
from tests.probes.whole_images import context as whole_images

pytestmark = pytest.mark.integration

DENSE = {"size": 48, "batch_size": 2, "max_iters": 3, "warmup": 0.0}
SSD = {
    "max_iters": 2,
    "batch_size": 2,
    "size": 64,
    "out_channels": 32,
    "lr": 3e-3,
    "augment": False,
    "cache": "fp32",
}
LINEAR = {"epochs": 2, "batch_size": 8, "learning_rates": (0.01, 0.1), "holdout": 0.25}


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


@pytest.mark.parametrize(
    ("task", "settings"),
    [
        ("segmentation/linear", {**DENSE, "fixed_crops": 2, "cache": "fp32"}),
        ("depth/linear", {**DENSE, "lr_grid": (0.001, 0.01)}),
        ("segmentation/patch-knn", {"size": 48, "neighbours": (1, 3)}),
        pytest.param("segmentation/in-context", {"size": 48}, marks=pytest.mark.slow),
        pytest.param("detection/ssd", SSD, marks=pytest.mark.slow),
        ("classification/linear", LINEAR),
        ("classification/knn", {"neighbours": (1, 3)}),
        ("classification/few-shot", {"shots": 2}),
    ],
)
def test_a_share_scores_as_a_dataset_of_its_images(tmp_path, task, settings):
    kind, probe = task.partition("/")[0], PROBES[task]
    if kind == "classification":
        folder = make_imagefolder(tmp_path / "data", 8, 3)
        full_context = whole_images(probe, DATASETS["imagefolder"], folder, **settings)
    else:
        if kind == "detection":
            data = tiny_coco.prepared(tiny_coco.write(tmp_path / "data", train=8, val=3))
        else:
            data = tiny_dense.make(tmp_path / "data", kind, train=6)
        all_settings = probe.settings_type(**settings)
        full_context = context(tmp_path / "work", data, all_settings, "tiny-cnn")
    share_data = with_share(full_context.data, 0.5, 3)
    contexts = []
    for name, data in (
        ("full", full_context.data),
        ("share", share_data),
        ("alone", share_data.without_unused),
    ):
        folder = tmp_path / name
        folder.mkdir()
        contexts.append(replace(full_context, data=data, work_dir=folder, cost=Cost()))
    full, share, alone = (probe.run(each) for each in contexts)
    assert share.metrics == alone.metrics
    assert probe.config(contexts[1]) == probe.config(contexts[2])
    for name, values in share.per_image.items():
        assert np.array_equal(values, alone.per_image[name])
    if share.head is not None:
        tensors = share.head.tensors.items()
        assert all(tensor.equal(alone.head.tensors[name]) for name, tensor in tensors)
        assert not all(tensor.equal(full.head.tensors[name]) for name, tensor in tensors)
    if "lr_grid" not in settings:  # a grid of learning rates caches no features
        assert contexts[0].cost.images["encode"] > 0 == contexts[1].cost.images["encode"]


def test_a_dataset_travels_by_its_name(tmp_path):
    """Its spec has functions, which cannot travel."""
    data = replace(tiny_coco.prepared(tiny_coco.write(tmp_path)), notes=("a",))
    share = replace(data, trained_on=with_share(data, 0.5, 0))
    with pytest.raises((AttributeError, pickle.PicklingError), match="lambda"):
        pickle.dumps(share.spec)
    travelled = pickle.loads(pickle.dumps(share))
    assert travelled == share
    assert travelled.spec is travelled.trained_on.spec is DATASETS[data.name]
