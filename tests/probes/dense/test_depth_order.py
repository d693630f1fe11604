"""The order of depths, against Kendall's tau of scipy and torch's ranking loss."""

from unittest import mock

import numpy as np
import pytest
import torch
from scipy.stats import kendalltau
from torch.nn.functional import soft_margin_loss

from probes.dense import depth_order
from probes.dense.depth_order import DepthOrder
from probes.registry import DATASETS, find_task

TASK = DepthOrder()


@pytest.mark.parametrize("noise", [0.0, 0.5, 3.0])
def test_the_share_of_pairs_is_that_of_kendalls_tau(noise):
    """Of all pairs without ties it is (τ + 1) / 2."""
    generator = torch.Generator().manual_seed(0)
    target = 1 + 5 * torch.rand(1, 24, 32, generator=generator)
    prediction = target + noise * torch.randn(1, 24, 32, generator=generator)
    with mock.patch.object(depth_order, "PAIRS", 200_000):
        score = TASK.score(prediction, target)["ordinal_accuracy"]
    tau = kendalltau(prediction.flatten(), target.flatten()).statistic
    assert float(score) == pytest.approx(50 * (tau + 1), abs=0.5)


def test_scale_does_not_count_and_one_number_for_all_pixels_guesses():
    target = 1 + torch.rand(1, 16, 16)
    for prediction, expected in ((target.log() - 7, 100), (-target, 0), (0 * target, 50)):
        assert float(TASK.score(prediction, target)["ordinal_accuracy"]) == expected


def test_the_floor_is_that_of_the_lower_point():
    rows = torch.linspace(3, 1, 20)[:, None].expand(20, 8)[None]
    assert float(TASK.score(torch.rand(1, 20, 8), rows)["ordinal_vertical"]) == 100


def test_unknown_pixels_and_those_outside_of_the_range_are_in_no_pair():
    target = 1 + torch.rand(16, 16)
    target[:8], target[8:10] = 0, 50
    nearer, farther = TASK.bound(max_depth=10.0).pairs(target)
    assert len(nearer) > 1900
    assert min(nearer.min(), farther.min()) >= 160
    assert (target.flatten()[nearer] < target.flatten()[farther]).all()
    nothing = TASK.score(target[None], 0 * target[None])
    assert np.isnan(float(nothing["ordinal_accuracy"]))


def test_the_loss_is_the_logistic_one_of_pairs():
    target = 1 + torch.rand(2, 8, 8)
    target[1] = 0
    prediction = torch.randn(2, 8, 8, requires_grad=True)
    near, far = prediction[0].flatten()[TASK.pairs(target[0])]
    total, count = TASK.loss(prediction, target)
    assert int(count) == len(near)
    expected = soft_margin_loss(far - near, torch.ones(len(near)))
    torch.testing.assert_close(total / count, expected)
    total.backward()
    assert not prediction.grad[1].any()


def test_every_depth_map_of_nyu_and_kitti_has_an_order():
    for name in ("nyu-depth", "kitti-depth"):
        assert DATASETS[f"{name}-order"].list_samples is DATASETS[name].list_samples
        assert find_task(f"{name}-order/linear")[1].kind == "depth-order"
