"""Dense truth through the pipelines: flipped right, and scored at its own resolution."""

import cv2
import numpy as np
import pytest
import torch

from probes.dense.dataset import DenseDataset
from probes.dense.depth import DepthSettings
from probes.dense.segmentation import SegmentationSettings
from tests.probes import tiny_dense

from mmengine.registry import DefaultScope  # isort: skip

MEAN = (120.0, 110.0, 100.0)
FIELDS = {"segmentation": "gt_sem_seg", "depth": "gt_depth_map", "normals": "gt_normal_map"}


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


@pytest.mark.parametrize("kind", FIELDS)
def test_a_flip_mirrors_the_truth_and_turns_normals(tmp_path, kind):
    data = tiny_dense.make(tmp_path, kind, size=(32, 32))
    plain, flipped = (dataset(tmp_path, data, flip=flip)[0] for flip in (0.0, 1.0))
    assert (flipped["inputs"] == plain["inputs"].flip(2)).all()
    target, mirrored = (each["data_samples"].get(FIELDS[kind]).data for each in (plain, flipped))
    expected = target.flip(2)
    if kind == "normals":
        assert (expected[0].abs() > 0.05).any()
        expected[0] = -expected[0]
    assert (mirrored == expected).all()


@pytest.mark.parametrize("kind", FIELDS)
def test_training_crops_are_padded_with_nothing_and_val_keeps_its_resolution(tmp_path, kind):
    data, unknown = tiny_dense.make(tmp_path, kind, size=(48, 64)), 255 * (kind == "segmentation")
    sample = dataset(tmp_path, data, size=24, crop=40)[0]  # 24 × 32 pixels in a crop of 40 × 40
    target = sample["data_samples"].get(FIELDS[kind]).data
    assert sample["inputs"].shape == (3, 40, 40) and target.shape[1:] == (40, 40)
    assert all((part == unknown).all() for part in (target[:, 24:], target[:, :, 32:]))
    assert target[:, :24, :32].float().std() > 0
    assert sample["inputs"][:, 39, 39].tolist() == [120, 110, 100]  # the mean colour
    val = dataset(tmp_path, data, split="val", size=24)
    assert [val[i]["inputs"].shape for i in range(3)] == [(3, 24, 32), (3, 32, 24), (3, 24, 32)]
    for index, each in enumerate(data.samples["val"]):
        packed = val[index]["data_samples"]
        target = packed.get(FIELDS[kind]).data.numpy()
        assert packed.image == each.image and packed.ori_shape == target.shape[1:]
        path = str(tmp_path / each.image.replace("images", "truth"))
        stored = cv2.imread(path, cv2.IMREAD_UNCHANGED)
        if kind == "normals":
            assert (target.any(axis=0) == stored.any(axis=2)).all()
        else:
            unit = {"segmentation": 1, "depth": 1000}[kind]
            np.testing.assert_allclose(target[0], stored / unit, rtol=1e-6)


def test_an_area_is_read_of_image_and_truth(tmp_path):
    data = tiny_dense.make(tmp_path, "depth", train=1, val=1, size=(48, 64))
    settings = DepthSettings(size=0, crop=(32, 44), flip=0, train_area=(8, 40, 16, 60))
    train, _ = tiny_dense.pipelines(data, settings, settings.crop, MEAN)
    cut = DenseDataset(data.spec.name, str(tmp_path), "train", train)[0]
    whole = dataset(tmp_path, data, size=48, crop=(48, 64))[0]
    assert torch.equal(cut["inputs"], whole["inputs"][:, 8:40, 16:60])
    depths = [each["data_samples"].gt_depth_map.data for each in (cut, whole)]
    assert torch.equal(depths[0], depths[1][:, 8:40, 16:60])
