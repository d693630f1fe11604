"""Data of experts: the official layouts, bounded memory."""

from __future__ import annotations

import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from backbones.cliptex.experts.base import ExpertData, FitSettings, load_data
from backbones.cliptex.experts.fit import augmented_batch
from backbones.cliptex.ground_truth import paint
from backbones.cliptex.losses import IGNORE
from backbones.cliptex.targets import ClassMap, Geometry
from backbones.cliptex.tasks import TASKS, find_task
from cliptex_common.errors import UserError
from cliptex_common.progress import Silent
from tests.backbones.cliptex.experts import toy_experts


def test_small_instances_are_painted_over_large_ones():
    square = {"category_id": 1, "area": 36, "segmentation": [[1, 1, 7, 1, 7, 7, 1, 7]]}
    dot = {"category_id": 2, "area": 4, "segmentation": [[3, 3, 5, 3, 5, 5, 3, 5]]}
    runs = {"size": [10, 10], "counts": [80, 20]}
    crowd = {"category_id": 2, "area": 8, "iscrowd": 1, "segmentation": runs}
    merged = paint({"height": 10, "width": 10, "annotations": [dot, crowd, square]})
    assert (merged[4, 4], merged[2, 2], merged[0, 0]) == (2, 1, 0)
    assert (merged[:, 8:] == 255).all()


def read_all(*args, **more):
    return (data := load_data(*args, Silent(), **more)).read(range(len(data)))


def test_data(tmp_path):
    root = toy_experts.write_truth(tmp_path, train=3, val=2)
    seg = load_data(root, "seg", "train", 32, Silent())
    images, classes = seg.read(range(3))
    assert seg.classes == ("background", "cup", "chair")
    assert images.shape == (3, 3, 32, 32)
    assert seg.pixels.tolist() == classes.flatten().bincount(minlength=256).tolist()
    inverse_depth = read_all(root, "depth", "train", 32)[1]
    assert float(inverse_depth.max()) == pytest.approx(1 / 1.5, abs=1e-3)
    normal = read_all(root, "normal", "train", 32)[1]
    objects = classes > 0
    assert float(normal[:, 2][objects].min()) > 0.99
    assert float(normal[:, 0][~objects].mean()) == pytest.approx(-0.6, abs=0.01)
    assert read_all(root, "seg", "val", 16)[0].shape == (2, 3, 16, 16)
    with pytest.raises(UserError, match="is missing in"):
        load_data(tmp_path / "nowhere", "seg", "train", 32, Silent())


class Parts(ClassMap):
    name = "parts"

    loss = score = None


def test_maps_of_classes_are_read_from_folders(tmp_path, monkeypatch):
    monkeypatch.setitem(TASKS, "parts", Parts())
    root = toy_experts.write_truth(tmp_path, train=3, val=2)
    numbers = np.zeros((32, 32), np.uint8)
    numbers[:4], numbers[4:8] = 2, 255
    for split, stems in (("train", range(3)), ("val", range(1000, 1002))):
        (folder := root / f"parts/annotations/{split}").mkdir(parents=True)
        for stem in stems:
            Image.fromarray(numbers).save(folder / f"{stem:06d}.png")
        shutil.copytree(root / f"coco/{split}2017", root / f"parts/images/{split}")
    with pytest.raises(UserError, match=r"classes\.txt is missing"):
        load_data(root, "parts", "train", 32, Silent())
    names = root / "parts/classes.txt"
    names.write_text("floor\nwall\n")
    with pytest.raises(UserError, match="have class 2, but only 2 names"):
        load_data(root, "parts", "train", 32, Silent())
    names.write_text("floor\nwall\ncap\n")
    data = load_data(root, "parts", "val", 32, Silent())
    assert data.classes == ("floor", "wall", "cap") and len(data) == 2
    unturned = Geometry(torch.tensor([[0.5, 0.5, 1, 1]] * 2), torch.tensor([False, True]))
    target = find_task("parts").warp(list(data.read(range(2))[1]), unturned, 32)
    expected = torch.from_numpy(numbers.astype(int))
    assert (target == torch.where(expected == 255, IGNORE, expected)).all()


def test_data_in_memory_are_bounded(tmp_path):
    """Samples that do not fit are decoded again, to the same values."""
    decoded = []

    class Watched(list):
        def __getitem__(self, index):
            decoded.append(index)
            return super().__getitem__(index)

    root = toy_experts.write_truth(tmp_path, train=12, val=1)
    complete = load_data(root, "seg", "train", 32, Silent())
    images, classes = complete.read(range(12))
    part = ExpertData("seg", Watched(complete.samples), 32, memory=3 * (4 * 32 * 32))
    for indices in ([5, 0, 5], range(12), range(12)):
        part_images, part_classes = part.read(indices)
        assert torch.equal(part_images, images[list(indices)])
        assert torch.equal(part_classes, classes[list(indices)])
    assert len(decoded) == 2 + 10 + 9  # three stay in memory


def test_real_data(real_data):
    seg = load_data(real_data, "seg", "val", 64, Silent())
    assert (len(seg), len(seg.classes)) == (98, 81)
    assert 0.2 < seg.pixels[0] / seg.pixels.sum() < 0.9
    floor = read_all(real_data, "normal", "val", 64)[1][:, :, -12:].flatten(2)
    assert float(floor[:, 1].mean()) > 0.1  # floors point up


def test_a_batch_that_spans_epochs_crops_an_image_anew(tmp_path):
    root = toy_experts.write_truth(tmp_path, train=2, val=1)
    data = load_data(root, "seg", "train", 32, Silent())
    settings = FitSettings(size=32, batch_size=4, color_jitter=0.0)
    images, _ = augmented_batch(data, settings, seed=0, step=0)
    assert len({image.numpy().tobytes() for image in images}) == 4
