"""Several images of one shape are evaluated at once; nothing else about an evaluation changes."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from mmengine.dataset import DefaultSampler

import probes.catalog  # noqa: F401  registers
from probes.dense import config
from probes.detection import MaskRCNNSettings
from probes.detection import config as detection_config
from probes.registry import PROBES
from probes.runner.batches import SameShapeBatches
from tests.probes import tiny_coco, tiny_dense
from tests.probes.tiny_mmlab import Recorder, context


class Shapes:
    """A dataset of which only shapes are asked."""

    def __init__(self, *shapes):
        self.shapes = shapes

    def __len__(self):
        return len(self.shapes)

    def shape(self, index):
        return self.shapes[index]

    def own_size(self, index):
        return self.shapes[index][2:]


def batches(*shapes, **how):
    sampler = SameShapeBatches(DefaultSampler(Shapes(*shapes), shuffle=False), **how)
    assert len(sampler) == len(list(sampler))
    return list(sampler)


def test_neighbours_of_one_shape_go_together_in_order():
    low, wide = (48, 64, 40, 60), (64, 48, 60, 40)
    assert batches(low, low, low, wide, low, batch_size=2) == [[0, 1], [2], [3], [4]]
    assert batches(low, low, (48, 64, 48, 64), batch_size=8) == [
        [0, 1],
        [2],
    ]  # padded alike is not alike
    assert batches(low, low, low, batch_size=8, pixels=2 * 48 * 64 + 1) == [[0, 1], [2]]
    assert batches(low, low, batch_size=8, pixels=1) == [[0], [1]]
    assert batches(low, low, low, low, batch_size=8, outputs=2 * 40 * 60) == [[0, 1], [2, 3]]


@pytest.fixture(autouse=True)
def own_home(tmp_path, monkeypatch):
    monkeypatch.setenv("CLIPTEX_HOME", str(tmp_path / "home"))


@pytest.mark.parametrize(
    ("kind", "cache"),
    [("segmentation", "fp16"), ("depth", "fp16"), ("normals", "fp16"), ("normals", "none")],
)
def test_dense_scores_are_those_of_one_by_one(tmp_path, monkeypatch, kind, cache):
    data = tiny_dense.make(
        tmp_path / "data", kind, train=4, val=7
    )  # the second is turned on its side
    probe, results, steps = PROBES[f"{kind}/pspnet"], {}, {}
    settings = probe.settings_type(
        size=48,
        batch_size=4,
        channels=8,
        max_iters=3,
        lr=0.01,
        feature_stride=8,
        fixed_crops=1,
        cache=cache,
    )
    for most in (1, 32):
        monkeypatch.setattr(config, "AT_ONCE", most)
        recorder = Recorder()
        results[most] = probe.run(context(tmp_path / str(most), data, settings, recorder=recorder))
        steps[most] = next(total for name, total in recorder.started if name.endswith("evaluation"))
    assert steps == {1: 7, 32: 3}
    single, many = results[1], results[32]
    assert many.per_image["image"].tolist() == single.per_image["image"].tolist()
    assert many.metrics == pytest.approx(single.metrics, rel=1e-6)
    for name in set(single.per_image) - {"image"}:
        edge = 1 if name == "error_histogram" else 0  # an error at the edge of a bin
        np.testing.assert_allclose(
            many.per_image[name], single.per_image[name], rtol=1e-5, atol=edge
        )


@pytest.mark.parametrize("cache", ["none", "fp32"])
def test_detections_are_those_of_one_by_one(tmp_path, monkeypatch, cache):
    data = tiny_coco.prepared(tiny_coco.write(tmp_path / "shapes", train=6, val=5))
    settings = MaskRCNNSettings(
        max_iters=6,
        batch_size=2,
        short_side=64,
        long_side=64,
        out_channels=16,
        fc_out_channels=16,
        lr=3e-3,
        cache="fp32",
    )
    results, steps = {}, {}
    for most in (1, 16):
        monkeypatch.setattr(detection_config, "AT_ONCE", most)
        recorder = Recorder()
        results[most] = PROBES["detection/mask-rcnn"].run(
            context(tmp_path / str(most), data, settings, recorder=recorder)
        )
        steps[most] = next(total for name, total in recorder.started if name.endswith("evaluation"))
    assert steps == {1: 5, 16: 2}  # images of two shapes, alternating in the file
    single, many = results[1], results[16]
    assert many.per_image["image"].tolist() == single.per_image["image"].tolist()
    assert many.per_image["detections"].sum() > 0
    assert many.per_image["detections"].tolist() == single.per_image["detections"].tolist()
    for expected, right in zip(single.detections, many.detections, strict=True):
        assert (expected["image_id"], expected["category_id"]) == (
            right["image_id"],
            right["category_id"],
        )
        assert torch.allclose(
            torch.tensor(expected["bbox"]), torch.tensor(right["bbox"]), atol=1e-3
        )
        assert expected["score"] == pytest.approx(right["score"], abs=1e-5)
    assert many.metrics == pytest.approx(single.metrics, abs=1e-6)
