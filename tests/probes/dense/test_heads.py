"""Heads and objectives of the dense probes, against formulas written again in numpy."""

import copy

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from probes.dense.heads import LinearHead
from probes.dense.losses import TaskObjective
from probes.dense.settings import aspp_dilations


def test_dilations_are_the_papers_at_its_size():
    assert aspp_dilations(512, 8) == (1, 12, 24, 36)
    assert aspp_dilations(160, 8) == (1, 4, 8, 11)


@pytest.mark.parametrize("dropout_first", [False, True])
def test_the_quick_linear_head_is_equal_up_to_rounding(dropout_first):
    """Outputs, gradients and running statistics, on channels whose means are large."""
    ratio = 0.5 if dropout_first else 0.0
    torch.manual_seed(0)
    head = LinearHead(
        in_channels=5, in_index=0, num_classes=3, dropout_ratio=ratio, dropout_first=dropout_first
    )
    torch.nn.init.normal_(head.norm.weight)
    maps = 3 * torch.randn(4, 5, 6, 7) + 100 * torch.arange(5.0)[:, None, None]
    results = []
    for maps_are_constant in (True, False):
        each, inputs = copy.deepcopy(head), maps.clone().requires_grad_(not maps_are_constant)
        torch.manual_seed(1)
        outputs = each((inputs,))
        outputs.square().sum().backward()
        gradients = {name: weight.grad for name, weight in each.named_parameters()}
        results.append((outputs.detach(), gradients, dict(each.named_buffers())))
    torch.testing.assert_close(*results, rtol=1e-4, atol=1e-4)


@settings(max_examples=60)
@given(
    st.integers(0, 2**32 - 1), st.sampled_from([0.0, 0.5, 0.85, 1.0]), st.sampled_from([0.0, 0.5])
)
def test_the_depth_loss_is_eigens_or_half_of_it_relative(seed, balance, weight):
    random = np.random.default_rng(seed)
    options = {"silog_lambda": balance, "relative_weight": weight}
    objective = TaskObjective("depth", min_depth=0.5, max_depth=8.0, **options)
    raw, target = random.normal(size=(3, 1, 5, 7)), random.uniform(0.0, 10.0, (3, 1, 5, 7))
    target[random.random(target.shape) < 0.3] = 0
    target[2] = 0
    expected = []
    for output, depth in zip(raw, target, strict=True):
        valid = (depth >= 0.5) & (depth <= 8.0)
        if valid.any():
            metres = 0.5 + 7.5 / (1 + np.exp(-output[valid]))
            d = np.log(metres) - np.log(depth[valid])
            n = d.size
            silog = np.sqrt(max(1e-8, (d**2).sum() / n - balance * d.sum() ** 2 / n**2))
            relative = np.mean(np.abs(metres - depth[valid]) / depth[valid])
            expected.append((1 - weight) * silog + weight * relative)
    loss = objective(
        torch.tensor(raw, dtype=torch.float32), torch.tensor(target, dtype=torch.float32)
    )
    assert loss.item() == pytest.approx(np.mean(expected), rel=1e-3, abs=1e-4)


@pytest.mark.parametrize(
    "objective",
    [TaskObjective("depth", min_depth=0.1, max_depth=10.0), TaskObjective("normals")],
    ids=["depth", "normals"],
)
def test_gradients_are_finite_in_the_corners_and_zero_where_nothing_is_known(objective):
    target = torch.zeros(2, objective.channels, 4, 4)
    raw = torch.zeros(2, objective.channels, 4, 4, requires_grad=True)
    objective(raw, target).backward()  # no valid pixel at all
    assert raw.grad.abs().max() == 0
    if objective.channels == 1:
        target[0, :, :2] = objective.decode(raw.detach())[0, :, :2]  # perfect
        target[0, :, 2] = torch.tensor(11.0)  # out of range
    else:
        target[0, 2, :2] = 1.0
        with torch.no_grad():
            raw[0, 2, 0], raw[0, 2, 1] = 3.0, -3.0  # right; just the opposite
    raw.grad = None
    loss = objective(raw, target)
    loss.backward()
    assert torch.isfinite(loss) and torch.isfinite(raw.grad).all()
    assert raw.grad[1].abs().max() == 0 and raw.grad[0, :, 2:].abs().max() == 0


@settings(max_examples=40)
@given(st.integers(0, 2**32 - 1))
def test_the_normal_loss_is_the_mean_angle(seed):
    random = np.random.default_rng(seed)
    raw, target = random.normal(size=(2, 3, 4, 5)), random.normal(size=(2, 3, 4, 5))
    target /= np.linalg.norm(target, axis=1, keepdims=True)
    valid = random.random((2, 4, 5)) < 0.7
    valid[0, 0, 0] = True
    unit = raw / np.linalg.norm(raw, axis=1, keepdims=True)
    expected = np.arccos(np.clip((unit * target).sum(axis=1), -1, 1))[valid].mean()
    objective = TaskObjective("normals")
    loss = objective(torch.tensor(raw).float(), torch.tensor(target * valid[:, None]).float())
    assert loss.item() == pytest.approx(expected, abs=2e-3)
    assert np.allclose(objective.decode(torch.tensor(raw)).norm(dim=1), 1, atol=1e-5)
