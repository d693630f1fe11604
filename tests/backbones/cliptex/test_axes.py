"""Normals have the same axes in files, probes, labels and after augmentation."""

from __future__ import annotations

from random import Random

import numpy as np
from PIL import Image

import benchmark.mini.world  # noqa: F401  (registers them)
from backbones.cliptex.tasks import find_task
from benchmark.mini.solids import draw_picture
from benchmark.mini.world import encode_normals
from cliptex_common.images import AXES, read_normals
from probes.registry import DATASETS


def test_all_datasets_of_normals_have_the_same_axes():
    stored = {name: spec.extra["axes"] for name, spec in DATASETS.items() if spec.kind == "normals"}
    assert {"nyu-normal", "mini-normal"} <= set(stored) and set(stored.values()) == {AXES}


def test_experts_and_probes_read_the_same_normals(tmp_path):
    """The floor of a rendered room points up."""
    scene, _, target = draw_picture(Random(3), "home", 64)
    Image.fromarray(encode_normals(target.normals)).save(tmp_path / "n.png")
    label = np.moveaxis(find_task("normal").read(tmp_path / "n.png"), 0, -1)
    probed = read_normals(str(tmp_path / "n.png"))
    np.testing.assert_allclose(label, probed, atol=1e-6)
    np.testing.assert_allclose(label, target.normals, atol=0.01)
    floor = target.normals @ scene.axes[:, 2] > 0.99  # the world's up in camera axes
    assert floor.mean() > 0.05 and label[floor][:, 1].min() > 0.3
