"""Several images of one shape are evaluated at once; nothing else about an evaluation changes."""

from __future__ import annotations

import numpy as np
import pytest
from mmengine.dataset import DefaultSampler

import probes.catalog  # noqa: F401  registers
from probes.dense import config
from probes.detection import models as detection_config
from probes.registry import PROBES
from probes.train.sampling import SameShapeBatches, batch_options
from tests.probes import tiny_coco, tiny_dense
from tests.probes.tiny_mmlab import context
from tests.recorder import Recorder

pytestmark = pytest.mark.integration


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


DENSE = {
    "size": 48,
    "batch_size": 4,
    "channels": 8,
    "max_iters": 3,
    "lr": 0.01,
    "feature_stride": 8,
    "fixed_crops": 1,
}
MASK_RCNN = {
    "max_iters": 6,
    "batch_size": 2,
    "short_side": 64,
    "long_side": 64,
    "out_channels": 16,
    "fc_out_channels": 16,
    "lr": 3e-3,
}


@pytest.mark.parametrize(
    ("task", "cache"),
    [
        ("segmentation/pspnet", "fp16"),
        pytest.param("normals/pspnet", "none", marks=pytest.mark.slow),
        pytest.param("detection/mask-rcnn", "fp32", marks=pytest.mark.slow),
        pytest.param("detection/mask-rcnn", "none", marks=pytest.mark.slow),
    ],
)
def test_results_are_those_of_one_by_one(tmp_path, monkeypatch, task, cache):
    probe = PROBES[task]
    if probe.kind == "detection":  # images of two shapes, alternating in the file
        data = tiny_coco.prepared(tiny_coco.write(tmp_path / "data", train=6, val=5))
        settings, expected_steps = MASK_RCNN, {1: 5, 32: 2}
    else:  # the second is turned on its side
        data = tiny_dense.make(tmp_path / "data", probe.kind, train=4, val=7)
        settings, expected_steps = DENSE, {1: 7, 32: 3}
    results, steps = {}, {}
    for most in (1, 32):
        for module in (config, detection_config):
            monkeypatch.setattr(
                module, "batch_options", lambda _, *rest, most=most: batch_options(most, *rest)
            )
        recorder = Recorder()
        chosen = probe.settings_type(**settings, cache=cache)
        results[most] = probe.run(context(tmp_path / str(most), data, chosen, recorder=recorder))
        steps[most] = next(total for name, total in recorder.started if name.endswith("evaluation"))
    assert steps == expected_steps
    single, many = results[1], results[32]
    assert many.per_image["image"].tolist() == single.per_image["image"].tolist()
    assert many.metrics == pytest.approx(single.metrics, rel=1e-6, abs=1e-6)
    for name in set(single.per_image) - {"image"}:
        edge = 1 if name == "error_histogram" else 0  # an error at the edge of a bin
        np.testing.assert_allclose(
            many.per_image[name], single.per_image[name], rtol=1e-5, atol=edge
        )
    assert bool(single.detections) == (probe.kind == "detection")
    for expected, mine in zip(single.detections or (), many.detections or (), strict=True):
        assert mine["image_id"] == expected["image_id"]
        assert mine["category_id"] == expected["category_id"]
        assert mine["bbox"] == pytest.approx(expected["bbox"], abs=1e-3)
        assert mine["score"] == pytest.approx(expected["score"], abs=1e-5)
