"""Dense probes on kept features: the same features and the same numbers as encoding the same crops
each time."""

import dataclasses
import shutil
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.registry import DefaultScope
from mmseg.registry import DATASETS, MODELS
from PIL import Image

import backbones
from probes.dense.config import dense_config
from probes.dense.dataset import DenseDataset
from probes.dense.tasks import DENSE_TASKS
from probes.features.maps import all_crops, collate_views
from probes.registry import PROBES
from tests.probes import tiny_dense
from tests.probes.tiny_mmlab import context

pytestmark = pytest.mark.integration

SMALL = {
    "size": 48,
    "batch_size": 4,
    "channels": 8,
    "scale_range": (0.7, 1.5),
    "warmup": 0.0,
    "max_iters": 4,
    "lr": 0.01,
    "feature_stride": 8,
    "fixed_crops": 2,
    "cache": "none",
}


def prepare(
    folder: Path,
    kind: str,
    data,
    name: str = "linear",
    backbone: str = "tiny-cnn",
    **change,
):
    probe = PROBES[f"{kind}/{name}"]
    settings = probe.settings_type(**{**SMALL, **change})
    task = context(folder, data, settings)
    if backbone != "tiny-cnn":
        create = {"name": backbone, "seed": 3}
        task = dataclasses.replace(
            task, backbone=backbones.create(**create), backbone_config=create
        )
    return probe, task


def run(*args, **kwargs):
    probe, task = prepare(*args, **kwargs)
    return probe.run(task)


def sets(probe, task) -> list[DenseDataset]:
    """The datasets that a probe's config names: train and val."""
    config = dense_config(probe, task)
    with DefaultScope.overwrite_default_scope("mmseg"):
        return [
            DATASETS.build(loader.dataset)
            for loader in (config.train_dataloader, config.val_dataloader)
        ]


def test_cached_maps_are_those_of_encoding_each_time(tmp_path):
    """And so is the ground truth of the same crop."""
    data = tiny_dense.make(tmp_path / "data", "depth", train=3, val=1)
    config = dense_config(*prepare(tmp_path / "plain", "depth", data))
    train, _ = sets(*prepare(tmp_path / "cached", "depth", data, cache="fp32"))
    train.open()
    with DefaultScope.overwrite_default_scope("mmseg"), torch.no_grad():
        plain = DATASETS.build(config.train_dataloader.dataset)
        prepared = MODELS.build(config.model.data_preprocessor)
        frozen = MODELS.build(config.model.backbone)
        for row, (index, crop) in enumerate(product(range(3), all_crops(2, 0.5))):
            item = plain.pipeline({**plain.get_data_info(index), "crop": tuple(crop)})
            maps = frozen(prepared(collate_views([item]), True)["inputs"])
            for cached, fresh in zip(train.feature_store()[row], maps, strict=True):
                torch.testing.assert_close(cached, fresh[0])
            assert torch.equal(train.stores[1][row][0], item["data_samples"].gt_depth_map.data)


def test_crops_depend_on_the_image_alone(tmp_path):
    data = tiny_dense.make(tmp_path / "data", "segmentation", train=2, size=(80, 120))
    for folder in ("images", "truth"):
        first = tmp_path / f"data/{folder}/train/000.png"
        shutil.copy(first, first.with_stem("001"))
    config = dense_config(*prepare(tmp_path / "w", "segmentation", data, fixed_crops=5))
    with DefaultScope.overwrite_default_scope("mmseg"):
        plain = DATASETS.build(config.train_dataloader.dataset)
    cut = [
        [
            plain.pipeline({**plain.get_data_info(index), "crop": (number, flipped)})
            for index in (0, 1)
        ]
        for number in range(5)
        for flipped in (False, True)
    ]
    for pair in cut:
        assert torch.equal(*(each["inputs"] for each in pair))
        assert torch.equal(*(each["data_samples"].gt_sem_seg.data for each in pair))
    assert len({first["inputs"].float().mean().item() for first, _ in cut[::2]}) == 5
    centre, flipped = cut[0][0], cut[1][0]
    assert torch.equal(centre["inputs"].flip(2), flipped["inputs"])


def test_whatever_changes_a_feature_changes_the_key(tmp_path, monkeypatch):
    data = tiny_dense.make(tmp_path / "data", "segmentation")

    def features(data=data, **change) -> tuple[str, str]:
        train, val = sets(
            *prepare(tmp_path / "w", "segmentation", data, **{"cache": "fp32", **change})
        )
        folders = []
        for dataset in (train, val):
            dataset.open()
            folders.append(dataset.feature_store().folder.name)
            dataset.close()
        return folders[0], folders[1]

    base = features()
    assert features() == base and base[0] != base[1]  # the split
    assert (
        features(max_iters=99, lr=0.5, channels=4, feature_stride=4) == base
    )  # of no concern to the backbone
    assert features(backbone="tiny-vit")[0] != base[0]
    probe, task = prepare(tmp_path / "w", "segmentation", data, cache="fp32")
    train, _ = sets(
        probe, dataclasses.replace(task, backbone_config={"name": "tiny-cnn", "seed": 4})
    )
    train.open()
    assert train.feature_store().folder.name != base[0]  # weights
    for change in ({"size": 64}, {"cache": "fp16"}, {"precision": "bf16"}, {"layers": "last"}):
        assert not set(features(**change)) & set(base), change
    for change in ({"scale_range": (0.5, 1.0)}, {"fixed_crops": 3}, {"flip": 0.0}):
        assert features(**change)[0] != base[0], change
    part = {"train": data.samples["train"][1:], "val": data.samples["val"]}
    assert features(dataclasses.replace(data, samples=part))[0] != base[0]
    path = tmp_path / "data" / data.samples["train"][3].image
    pixels = np.asarray(Image.open(path)).copy()
    pixels[10, 10] ^= 1
    Image.fromarray(pixels).save(path)
    changed = features()
    assert changed[0] != base[0] and changed[1] == base[1]  # a single image of train


def test_cached_ground_truth_is_that_of_the_plugin_that_reads_it(tmp_path, monkeypatch):
    data = tiny_dense.make(tmp_path / "data", "depth")

    def folders() -> list[str]:
        train, _ = sets(*prepare(tmp_path / "w", "depth", data, cache="fp32"))
        train.open()
        names = [store.folder.name for store in train.stores]
        train.close()
        return names

    features, ground_truth = folders()
    monkeypatch.setattr(DENSE_TASKS, "origin", lambda name: {"plugin": name})
    assert folders()[0] == features
    assert folders()[1] != ground_truth


def test_what_is_cached_is_not_decoded(tmp_path, monkeypatch):
    data = tiny_dense.make(tmp_path / "data", "segmentation")
    train, val = sets(*prepare(tmp_path / "w", "segmentation", data, cache="fp32"))
    train.open()
    val.open()

    def decode(self, results):
        raise AssertionError("an image is decoded")

    monkeypatch.setattr("mmcv.transforms.LoadImageFromFile.transform", decode)
    for dataset in (train, val):
        assert dataset[0]["data_samples"].gt_sem_seg.data.any()
        dataset.close()
