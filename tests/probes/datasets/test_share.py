"""A share of train: what is drawn, and that every probe that trains gives the number of a dataset
that has no more than it, from the features of the whole."""

from dataclasses import replace

import numpy as np
import pytest

import probes.catalog  # noqa: F401
from probes.cost import Cost
from probes.datasets.check import prepare
from probes.datasets.share import with_share
from probes.registry import DATASETS, PROBES
from tests.probes import tiny_coco, tiny_dense
from tests.probes.datasets.make import make_imagefolder
from tests.probes.tiny_mmlab import context
from tests.probes.whole_images import context as whole_images

DENSE = {"size": 48, "batch_size": 2, "max_iters": 3, "warmup": 0.0}
CACHED = {**DENSE, "fixed_crops": 2, "cache": "fp32"}
SSD = {
    "max_iters": 2,
    "batch_size": 2,
    "size": 64,
    "out_channels": 32,
    "lr": 3e-3,
    "augment": False,
}


@pytest.fixture(autouse=True)
def own_home(tmp_path, monkeypatch):
    monkeypatch.setenv("CLIPTEX_HOME", str(tmp_path / "home"))


def test_a_share_is_nested_stratified_and_of_the_content(tmp_path):
    data = prepare(DATASETS["imagefolder"], make_imagefolder(tmp_path / "a", 10, 1))
    assert with_share(data, 1.0, 0) is data
    half, tenth = with_share(data, 0.5, 0), with_share(data, 0.01, 0)
    for part, each in ((half, 5), (tenth, 1)):
        targets = [sample.target for sample in part.samples["train"]]
        assert np.bincount(targets).tolist() == [each] * len(data.classes) and targets == sorted(
            targets
        )
        assert [part.full_train[index] for index in part.train_indices] == part.samples["train"]
        indices = sorted({*part.train_indices, *part.unused_indices})
        assert indices == list(range(len(data.samples["train"])))
        assert part.samples["val"] == data.samples["val"] and part.encoded("train") == tuple(
            data.samples["train"]
        )
    assert set(tenth.train_indices) < set(half.train_indices) and with_share(data, 0.5, 0) == half
    assert with_share(data, 0.5, 1).train_indices != half.train_indices
    renamed = replace(data, samples={**data.samples, "train": data.samples["train"][::-1]})
    assert sorted(s.image for s in with_share(renamed, 0.5, 0).samples["train"]) == sorted(
        sample.image for sample in half.samples["train"]
    )


@pytest.mark.parametrize(
    ("task", "settings", "shared"),
    [
        ("segmentation/linear", CACHED, True),
        ("depth/linear", {**DENSE, "lr_grid": (0.001, 0.01)}, False),
        ("segmentation/patch-knn", {"size": 48, "neighbours": (1, 3)}, True),
        ("segmentation/in-context", {"size": 48}, True),
        ("detection/ssd", {**SSD, "cache": "fp32"}, True),
        (
            "classification/linear",
            {"epochs": 2, "batch_size": 8, "learning_rates": (0.01, 0.1), "holdout": 0.25},
            True,
        ),
        ("classification/knn", {"neighbours": (1, 3)}, True),
        ("classification/few-shot", {"shots": 2}, True),
    ],
)
def test_a_share_is_as_a_dataset_that_has_no_more(tmp_path, task, settings, shared):
    kind, probe = task.partition("/")[0], PROBES[task]
    if kind == "classification":
        folder = make_imagefolder(tmp_path / "data", 8, 3)
        around = whole_images(probe, DATASETS["imagefolder"], folder, **settings)
    else:
        data = (
            tiny_coco.prepared(tiny_coco.write(tmp_path / "data", train=8, val=3))
            if kind == "detection"
            else tiny_dense.make(tmp_path / "data", kind, train=6)
        )
        around = context(tmp_path / "work", data, probe.settings_type(**settings), "tiny-cnn")
    part = with_share(around.data, 0.5, 3)
    runs = {"whole": around.data, "share": part, "alone": part.without_unused}
    contexts = {
        name: replace(around, data=data, work_dir=folder_of(tmp_path, name), cost=Cost())
        for name, data in runs.items()
    }
    full, share, alone = (probe.run(each) for each in contexts.values())
    assert share.metrics == alone.metrics
    assert probe.config(contexts["share"]) == probe.config(contexts["alone"])
    assert all(
        np.array_equal(values, alone.per_image[name]) for name, values in share.per_image.items()
    )
    if share.head is not None:
        assert all(
            tensor.equal(alone.head.tensors[name]) for name, tensor in share.head.tensors.items()
        )
        assert not all(
            tensor.equal(full.head.tensors[name]) for name, tensor in share.head.tensors.items()
        )
    if shared:
        encoded = {name: each.cost.images["encode"] for name, each in contexts.items()}
        assert encoded["whole"] > 0 == encoded["share"]


def folder_of(parent, name):
    (parent / name).mkdir()
    return parent / name
