"""What a family of dense tasks has by default, and what all of them keep."""

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional as F

from cliptex_common.errors import UserError
from probes.datasets.base import DatasetSpec
from probes.dense.losses import TaskObjective
from probes.dense.pipelines import FollowImage
from probes.dense.probe import register_dense_task
from probes.dense.task import DenseTask
from probes.dense.tasks import DENSE_TASKS
from reports.records import Metric

METRICS = {"error": Metric(-1, ""), "share": Metric()}


class Flow(DenseTask):
    name, metrics, channels, outputs = "flow", {"epe": Metric(-1, "px")}, 2, 2

    def factors(self, flipped, scale):
        return (-scale[0] if flipped else scale[0], scale[1])

    def loss(self, prediction, target):
        return (prediction[:, :2] - target).abs().sum(), torch.tensor(target.numel())

    def score(self, prediction, target):
        return {"epe": (prediction - target).square().sum(0).sqrt().mean()}

    def summary(self, arrays, weights):
        return {"epe": weights @ arrays["epe"] / weights.sum(1)}


@pytest.fixture
def flow():
    DENSE_TASKS["flow"] = Flow()
    yield
    del DENSE_TASKS["flow"]


class Alpha(DenseTask):
    name, metrics, value_range, unknown = "alpha", METRICS, (0.0, 2.0), -1.0


def test_a_map_of_numbers_is_a_grey_png(tmp_path):
    Image.fromarray(np.array([[0, 128, 255]], np.uint8)).save(tmp_path / "map.png")
    values = Alpha().read(str(tmp_path / "map.png"))
    np.testing.assert_allclose(values, [[0, 2 * 128 / 255, 2]], rtol=1e-6)
    (tmp_path / "map.png").write_bytes(b"no picture")
    with pytest.raises(UserError, match="cannot read ground truth"):
        Alpha().load(str(tmp_path / "map.png"))


def test_metrics_are_means_over_the_images_of_a_resample():
    arrays = {"error": np.array([1.0, np.nan, 4.0]), "share": np.array([10.0, 20.0, 30.0])}
    weights = np.array([[1, 1, 1], [2, 5, 0], [0, 1, 0]], np.float32)
    metrics = Alpha().summary(arrays, weights)
    np.testing.assert_allclose(metrics["error"], [2.5, 1, np.nan])
    np.testing.assert_allclose(metrics["share"], [20, 120 / 7, 20])
    scores = Alpha().image_scores(("a", "b", "c"), arrays)
    np.testing.assert_allclose(scores.of_images(), arrays["error"])
    assert scores.direction == -1 and set(scores.metrics) == set(METRICS)


def test_a_vector_follows_the_image_and_comes_back(flow):
    """In training to the size of the crop; of a prediction to the image's own; in a mirror."""
    target = np.ones((2, 4, 2), np.float32)
    resized = {"scale_factor": (2.0, 3.0), "enlarged": (1.0, 2.0), "flip": True}
    followed = FollowImage("flow").transform({**resized, "gt_seg_map": target})["gt_seg_map"]
    assert followed[0, 0].tolist() == [-2, 6] and followed.dtype == np.float32
    objective = TaskObjective("flow")
    raw = torch.stack([torch.full((2, 4), 4.0), torch.full((2, 4), 6.0)])
    assert objective.at_own_scale(raw, (2.0, 3.0))[:, 0, 0].tolist() == [2, 2]
    assert objective.mirror(raw[None])[0, :, 0, 0].tolist() == [-4, 6]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"name": "my flow/x"}, "letters, digits and hyphens"),
        ({"name": "detection"}, "of kind 'detection' already"),
        ({"metrics": {}}, "needs metrics"),
        ({"metrics": {"epe": Metric(), "Fw": Metric()}}, "summary gives no Fw"),
        ({"loss": DenseTask.loss}, "has no loss"),
        ({"loss": lambda self, *maps: F.l1_loss(maps[0][:, :2], maps[1])}, "return two"),
        ({"outputs": 3}, r"predict gives \(3, 64, 64\)"),
        ({"has_classes": True}, "subclass of Segmentation"),
    ],
)
def test_what_a_family_lacks_is_said_when_it_is_registered(change, message):
    task = type("Changed", (Flow,), change)()
    with pytest.raises(UserError, match=message):
        register_dense_task(task)
    assert DENSE_TASKS.get(task.name) is not task


def test_unknown_pixels_are_in_no_constant_and_grey_in_pictures():
    target = np.array([[[0.5, -1, 1.5]]])
    assert Alpha().best_constant(target.ravel(), None) == 1
    draw, legend = Alpha().drawing((), [target])
    assert draw(target)[0, 1].tolist() == [128] * 3 and legend.shape == (28, 360, 3)
    vectors = np.array([[1.0, 3.0], [-1, -1], [np.nan, np.nan], [3, 5]])
    constant = Alpha().best_constant(vectors, None)
    assert constant.tolist() == [2, 4] and Alpha().constant_name(constant, None) == "2, 4"


def test_a_stored_zero_that_is_ignored_is_not_the_first_class(tmp_path):
    spec = DatasetSpec("s", "segmentation", "", lambda *_: [], ignore_index=0, label_offset=-1)
    image = Image.fromarray(np.array([[0, 1, 2]], np.uint8))
    image.save(tmp_path / "map.png")
    task = DENSE_TASKS["segmentation"]
    task.check_file(spec, 2, tmp_path / "map.png", image)
    labels = task.read(str(tmp_path / "map.png"), **task.reading(spec, 2))
    assert labels.tolist() == [[spec.ignore_index, 0, 1]] and spec.ignore_index == 255
