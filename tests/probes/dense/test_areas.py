"""KITTI's crops: row by row those of the source's code, whatever the size of an image."""

import numpy as np
import pytest
import torch

from cliptex_common.errors import UserError
from probes.datasets.check import prepare
from probes.dense.dataset import DenseDataset
from probes.dense.depth import DepthSettings
from probes.dense.losses import TaskScores
from probes.dense.model import at_own_size
from probes.dense.settings import bounds_read, bounds_scored
from probes.dense.tasks import DENSE_TASKS
from probes.registry import DATASETS
from tests.probes import tiny_dense
from tests.probes.datasets import make

from mmengine.registry import DefaultScope  # isort: skip

SIZES = [(375, 1242), (370, 1224), (374, 1238), (370, 1226), (376, 1241)]  # KITTI's


@pytest.mark.parametrize(("height", "width"), SIZES)
def test_the_parts_that_are_scored_are_the_sources(height, width):
    top, left = height - 352, int((width - 1216) / 2)
    assert bounds_read(("kb",), height, width) == (top, height, left, left + 1216)
    inside = bounds_scored(("kb-garg",), height, width)
    assert inside == (top + 143, top + 349, left + 43, left + 1172)
    eigen = bounds_scored(("kb-eigen",), height, width)
    assert eigen == (top + 117, top + 321, left + 43, left + 1172)
    frame = np.zeros((height, width), bool)  # bts' eval_with_pngs.py
    frame[
        int(0.40810811 * height) : int(0.99189189 * height),
        int(0.03594771 * width) : int(0.96405229 * width),
    ] = True
    y1, y2, x1, x2 = bounds_scored(("kb-garg-frame",), height, width)
    ours = np.zeros_like(frame)
    ours[y1:y2, x1:x2] = True
    assert (ours == frame).all()
    if (height, width) == (375, 1242):  # in rows and columns of the crop that is read
        assert (y1 - top, y2 - top, x1 - left, x2 - left) == (130, 348, 31, 1184)


def test_an_image_that_is_smaller_than_the_crop_is_refused():
    with pytest.raises(UserError, match="does not fit an image of 1216×351"):
        bounds_read(("kb",), 351, 1216)
    assert bounds_read((), 10, 20) == (0, 10, 0, 20)
    assert bounds_scored((1, 5, 2, 6), 10, 20) == (1, 5, 2, 6)


@pytest.mark.parametrize(
    ("size", "square"), [((10, 21), (0, 10, 5, 15)), ((21, 10), (5, 15, 0, 10))]
)
def test_the_central_square_is_read_and_scored(size, square):
    assert bounds_read(("square",), *size) == bounds_scored(("square",), *size) == square
    scored = DENSE_TASKS["segmentation"].bound(crop=("square",), classes=("a", "b"))
    target = torch.zeros(1, *size, dtype=torch.long)
    wrong = torch.ones_like(target)
    y1, y2, x1, x2 = square
    wrong[:, y1:y2, x1:x2] = 0
    assert scored.score(wrong, target)["intersection"].tolist() == [100, 0]


def test_all_crops_are_settings(tmp_path):
    data = prepare(DATASETS["kitti-depth"], make.make_kitti(tmp_path), partial=True)
    settings = DepthSettings(
        size=352, crop=(352, 704), train_area=("kb",), test_area=("kb-garg-frame",)
    )
    train, test = tiny_dense.pipelines(data, settings, settings.crop)
    with DefaultScope.overwrite_default_scope("mmseg"):
        crops = DenseDataset("kitti-depth", str(tmp_path), "train", train)
        val = DenseDataset("kitti-depth", str(tmp_path), "val", test, test_mode=True)
        assert crops[0]["inputs"].shape[1:] == (352, 704)
    evaluator = DENSE_TASKS["depth"].evaluator(settings, data.spec)
    metric = TaskScores(**{name: value for name, value in evaluator.items() if name != "type"}).task
    for index, size in enumerate(SIZES[:2]):
        sample = val[index]["data_samples"]
        assert val[index]["inputs"].shape[1:] == (352, 1216)
        target = sample.gt_depth_map.data
        assert target.shape[1:] == size
        y1, y2, x1, x2 = bounds_scored(settings.test_area, *size)
        wrong = target * 2
        wrong[:, y1:y2, x1:x2] = target[:, y1:y2, x1:x2]
        scores = metric.score(wrong, target)
        assert scores["abs_rel"] == 0, "nothing else is scored"
        assert scores["pixels"] == (target[:, y1:y2, x1:x2] > 0).sum() > 0
        raw = torch.rand(1, 1, 352, 1216)
        ((_, part),) = at_own_size(raw, [sample], False)
        y1, y2, x1, x2 = bounds_read(settings.test_area, *size)
        assert torch.equal(part[:, :, y1:y2, x1:x2], raw)
    units = [data.spec.units(tmp_path)[sample.image] for sample in data.samples["val"]]
    assert [unit[-6:] for unit in units] == ["0_sync", "0_sync", "1_sync"]
