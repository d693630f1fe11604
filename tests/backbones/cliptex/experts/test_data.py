"""What experts are trained on and measured against: the official layouts, bounded memory,
figures."""

from __future__ import annotations

import pytest
import torch

from backbones.cliptex.experts.base import resize
from backbones.cliptex.experts.data import ExpertData, load_data, paint
from backbones.cliptex.protocols import Silent
from common.errors import UserError
from tests.backbones.cliptex.experts import toy_experts


def test_paint_small_things_over_large_ones():
    square = {"category_id": 1, "area": 36, "segmentation": [[1, 1, 7, 1, 7, 7, 1, 7]]}
    dot = {"category_id": 2, "area": 4, "segmentation": [[3, 3, 5, 3, 5, 5, 3, 5]]}
    crowd = {
        "category_id": 2,
        "area": 8,
        "iscrowd": 1,
        "segmentation": {"size": [10, 10], "counts": [80, 20]},
    }
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
    torch.testing.assert_close(
        normal[:, 2][objects], torch.ones(int(objects.sum())), atol=1e-2, rtol=0
    )
    assert float(normal[:, 0][~objects].mean()) == pytest.approx(-0.6, abs=0.01)
    assert read_all(root, "seg", "val", 16)[0].shape == (2, 3, 16, 16)
    with pytest.raises(UserError, match="is missing in"):
        load_data(tmp_path / "nowhere", "seg", "train", 32, Silent())


def test_data_in_memory_are_bounded(tmp_path, monkeypatch):
    """What does not fit is decoded again, to the same values; the memory of a split does not grow
    with its size."""
    root = toy_experts.write_truth(tmp_path, train=12, val=1)
    complete = load_data(root, "seg", "train", 32, Silent())
    images, classes = complete.read(range(12))
    part = ExpertData("seg", complete.samples, 32, memory=3 * (4 * 32 * 32))
    decoded: list[int] = []
    monkeypatch.setattr(
        part, "_decode", lambda index: decoded.append(index) or complete._decode(index)
    )
    for indices in ([5, 0, 5], range(12), range(12)):
        pairs = part.read(indices)
        assert torch.equal(pairs[0], images[list(indices)]) and torch.equal(
            pairs[1], classes[list(indices)]
        )
    assert len(part._cached) == 3 and len(decoded) == 2 + 10 + 9
    assert len(complete._cached) == 12


def test_real_data(real_data):
    seg = load_data(real_data, "seg", "val", 64, Silent())
    assert (len(seg), len(seg.classes)) == (98, 81)
    assert 0.2 < seg.pixels[0] / seg.pixels.sum() < 0.9
    floor = read_all(real_data, "normal", "val", 64)[1][:, :, -12:].flatten(2)
    assert float(floor[:, 1].mean()) > 0.1  # floors point up


def test_resize_smooths_whichever_side_shrinks():
    noise = torch.rand(1, 1, 900, 300, generator=torch.Generator().manual_seed(0))
    assert float(resize(noise, (384, 384)).std()) < 0.8 * float(noise.std())
    assert float(resize(noise, (384, 384))[..., ::7].std()) == pytest.approx(
        float(resize(noise, (384, 300)).std()), rel=0.2
    )
