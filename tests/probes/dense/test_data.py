"""Dense truth through the pipelines: flipped right, and scored at its own resolution."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from probes.dense.dataset import DenseDataset
from probes.dense.segmentation import SegmentationSettings
from tests.probes import tiny_dense

from mmengine.registry import DefaultScope  # isort: skip

MEAN = (120.0, 110.0, 100.0)


@pytest.fixture(autouse=True)
def mmseg_scope():
    with DefaultScope.overwrite_default_scope("mmseg"):
        yield


def dataset(
    root, data, split="train", size=32, crop=32, scale=(1.0, 1.0), flip=0.0, exclude=(), **colours
):
    chosen = SegmentationSettings(size=size, scale_range=scale, flip=flip, **colours)
    sides = crop if isinstance(crop, tuple) else (crop, crop)
    train, test = tiny_dense.pipelines(data, chosen, sides, MEAN)
    return DenseDataset(
        data.spec.name,
        str(root),
        split,
        {"train": train, "val": test}[split],
        exclude,
        test_mode=split == "val",
    )


def stored(root, sample):
    return cv2.imread(str(root / sample.image.replace("images", "truth")), cv2.IMREAD_UNCHANGED)


@pytest.mark.parametrize("kind", ["segmentation", "depth", "normals"])
def test_a_flip_mirrors_the_truth_and_turns_normals(tmp_path, kind):
    data = tiny_dense.make(tmp_path, kind, size=(32, 32))
    plain, flipped = (dataset(tmp_path, data, flip=flip)[0] for flip in (0.0, 1.0))
    field = {"segmentation": "gt_sem_seg", "depth": "gt_depth_map", "normals": "gt_normal_map"}[
        kind
    ]
    target, mirrored = (sample["data_samples"].get(field).data for sample in (plain, flipped))
    assert (flipped["inputs"] == plain["inputs"].flip(2)).all()
    expected = target.flip(2)
    if kind == "normals":
        assert (expected[0].abs() > 0.05).any()
        expected[0] = -expected[0]
    assert (mirrored == expected).all()
    valid = {
        "segmentation": target != 255,
        "depth": target > 0,
        "normals": target.float().norm(dim=0) > 0.5,
    }[kind]
    assert valid.any() and not valid.all()


@pytest.mark.parametrize("kind", ["segmentation", "depth", "normals"])
def test_training_crops_are_padded_with_nothing(tmp_path, kind):
    data = tiny_dense.make(tmp_path, kind, size=(48, 64))
    sample = dataset(tmp_path, data, size=24, crop=40)[0]  # 24 × 32 pixels in a crop of 40 × 40
    target = next(iter(sample["data_samples"].values())).data
    assert sample["inputs"].shape == (3, 40, 40) and target.shape[1:] == (40, 40)
    outside = target[:, 24:], target[:, :, 32:]
    assert all((part == (255 if kind == "segmentation" else 0)).all() for part in outside)
    assert sample["inputs"][:, 39, 39].tolist() == [120, 110, 100]  # the mean colour
    target = target[:, :24, :32]
    assert target.float().std() > 0 and not (target == 255).all()


@pytest.mark.parametrize("kind", ["segmentation", "depth", "normals"])
def test_truth_for_scoring_keeps_its_resolution(tmp_path, kind):
    data = tiny_dense.make(tmp_path, kind, size=(48, 64))
    val = dataset(tmp_path, data, split="val", size=24)
    assert [val[i]["inputs"].shape for i in range(3)] == [(3, 24, 32), (3, 32, 24), (3, 24, 32)]
    for index, sample in enumerate(data.samples["val"]):
        packed = val[index]["data_samples"]
        target = next(iter(packed.values())).data.numpy()
        assert packed.image == sample.image and packed.ori_shape == target.shape[1:]
        raw = stored(tmp_path, sample)
        if kind == "segmentation":
            assert (target[0] == raw).all()
        elif kind == "depth":
            assert np.allclose(target[0], raw / 1000)
        else:
            assert (target.any(axis=0) == raw.any(axis=2)).all()
