"""Data of experts: the official layouts, bounded memory."""

from __future__ import annotations

import pytest
import torch

from backbones.cliptex.experts.data import ExpertData, load_data, paint
from backbones.cliptex.protocols import Silent
from common.errors import UserError
from tests.backbones.cliptex.experts import toy_experts


def test_small_instances_are_painted_over_large_ones():
    square = {"category_id": 1, "area": 36, "segmentation": [[1, 1, 7, 1, 7, 7, 1, 7]]}
    dot = {"category_id": 2, "area": 4, "segmentation": [[3, 3, 5, 3, 5, 5, 3, 5]]}
    runs = {"size": [10, 10], "counts": [80, 20]}
    crowd = {"category_id": 2, "area": 8, "iscrowd": 1, "segmentation": runs}
    merged = paint({"height": 10, "width": 10, "instances": [dot, crowd, square]})
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


def test_data_in_memory_are_bounded(tmp_path, monkeypatch):
    """Samples that do not fit are decoded again, to the same values."""
    root = toy_experts.write_truth(tmp_path, train=12, val=1)
    complete = load_data(root, "seg", "train", 32, Silent())
    images, classes = complete.read(range(12))
    part = ExpertData("seg", complete.samples, 32, memory=3 * (4 * 32 * 32))
    decoded: list[int] = []
    decode = part._decode
    monkeypatch.setattr(part, "_decode", lambda index: decoded.append(index) or decode(index))
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
