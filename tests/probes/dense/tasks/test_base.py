"""What a family of dense tasks has by default, and what all of them keep."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from common.errors import UserError
from probes.dense.tasks import DENSE_TASKS
from probes.dense.tasks.base import DenseTask
from reports.metrics import Metric
from tests.probes import tiny_dense

METRICS = {"error": Metric(-1, ""), "share": Metric()}


class Alpha(DenseTask):
    name, field, metrics, value_range, unknown = "alpha", "alpha_map", METRICS, (0.0, 2.0), -1.0


def test_a_map_of_numbers_is_a_grey_png(tmp_path):
    Image.fromarray(np.array([[0, 128, 255]], np.uint8)).save(tmp_path / "map.png")
    values = Alpha().read(str(tmp_path / "map.png"))
    np.testing.assert_allclose(values, [[0, 2 * 128 / 255, 2]], rtol=1e-6)
    (tmp_path / "map.png").write_bytes(b"no picture")
    with pytest.raises(UserError, match="cannot read ground truth"):
        Alpha().read(str(tmp_path / "map.png"))


def test_metrics_are_means_over_the_images_of_a_resample():
    arrays = {"error": np.array([1.0, np.nan, 4.0]), "share": np.array([10.0, 20.0, 30.0])}
    weights = np.array([[1, 1, 1], [2, 5, 0], [0, 1, 0]], np.float32)
    metrics = Alpha().summary(arrays, weights)
    np.testing.assert_allclose(metrics["error"], [2.5, 1, np.nan])
    np.testing.assert_allclose(metrics["share"], [20, 120 / 7, 20])
    scores = Alpha().image_scores(("a", "b", "c"), arrays)
    np.testing.assert_allclose(scores.each, arrays["error"])
    assert scores.each_sign == -1 and set(scores.metrics) == set(METRICS)


def test_unknown_pixels_are_in_no_constant_and_grey_in_pictures():
    target = np.array([[[0.5, -1, 1.5]]])
    assert Alpha().best_constant(target.ravel(), None) == 1
    draw, legend = Alpha().drawing((), [target])
    assert draw(target)[0, 1].tolist() == [128] * 3 and legend is None


@pytest.mark.parametrize("name", ["segmentation", "depth", "normals"])
def test_a_file_is_read_followed_and_drawn(tmp_path, name):
    task, data = DENSE_TASKS[name], tiny_dense.make(tmp_path, name)
    path = data.root / data.samples["val"][0].target
    values = task.read(str(path), **task.reading(data.spec, len(data.classes)))
    height, width = values.shape[:2]
    assert values.ndim == (2 if task.channels == 1 else 3)
    mirrored = task.follow(values[:, ::-1], True, (1.0, 1.0))
    assert mirrored.shape == values.shape
    np.testing.assert_array_equal(task.follow(mirrored[:, ::-1], True, (1.0, 1.0)), values)
    channels = values[None] if values.ndim == 2 else values.transpose(2, 0, 1)
    draw, _ = task.drawing(data.classes, [channels])
    picture = draw(channels)
    assert picture.shape == (height, width, 3) and picture.dtype == np.uint8
    assert Path(path).exists() and len(np.unique(picture)) > 1
