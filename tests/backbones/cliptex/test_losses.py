"""Losses against values worked out by hand, against other implementations, and their gradients;
of the AngMF likelihood also that it is a density."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from open_clip.loss import ClipLoss, SigLipLoss
from scipy.integrate import quad
from torch import nn
from torch.nn import functional as F

from backbones.cliptex import losses
from backbones.cliptex.losses import IGNORE, contrastive_loss, depth_loss
from backbones.cliptex.model import TaskHeads
from backbones.cliptex.objective import cached_gradients
from backbones.cliptex.tasks import find_task


def mean(summed):
    total, count = summed
    return (total / count).item()


def clip(**more):
    return nn.ParameterDict({"logit_scale": torch.tensor(0.0), **more})


@pytest.mark.parametrize("bias", [None, -3.0])
def test_cached_gradients_are_the_gradients(bias):
    values = {name: F.normalize(torch.randn(6, 4), dim=1) for name in ("image", "text")}
    values["logit_scale"] = torch.tensor(5.0)
    biases = {} if bias is None else {"logit_bias": torch.tensor(bias)}
    values |= biases
    leaves = {name: value.clone().requires_grad_() for name, value in values.items()}
    expected = (ClipLoss() if bias is None else SigLipLoss())(*leaves.values())
    gradients = torch.autograd.grad(expected, list(leaves.values()))
    value, cached = cached_gradients(values, contrastive_loss(clip(**biases)))
    assert torch.allclose(value, expected)
    for name, gradient in zip(leaves, gradients, strict=True):
        assert torch.allclose(cached[name], gradient, atol=1e-6)


def test_segmentation_by_hand():
    logits = torch.tensor([[[[0.0, 0.0, 5.0]], [[2.0, 0.0, 5.0]]]])
    target = torch.tensor([[[1, 0, IGNORE]]])
    total, count = find_task("seg").loss(logits, target)
    assert count == 2
    assert total.item() == pytest.approx(math.log(1 + math.exp(-2)) + math.log(2), rel=1e-6)


def test_depth_by_hand():
    # target 1 2 3 4 → median (lower) 2, deviation (1+0+1+2)/4 = 1; prediction 0 0 1 3 → 0, 1
    target = torch.tensor([[[1.0, 2.0, 3.0, 4.0]]])
    prediction = torch.tensor([[[0.0, 0.0, 1.0, 3.0]]])
    # residual: (0 0 1 3) − (−1 0 1 2) = 1 0 0 1 → mean ½; steps 1 0 1 → 2/4; every second pixel 1
    # 0: 1/2; then one: 0
    assert mean(depth_loss(prediction, target, gradient_weight=0.0)) == pytest.approx(0.5)
    assert mean(depth_loss(prediction, target, gradient_weight=0.5, scales=1)) == pytest.approx(
        0.5 + 0.5 * 0.5
    )
    assert mean(depth_loss(prediction, target)) == pytest.approx(0.5 + 0.5 * (0.5 + 0.5))


@settings(max_examples=30)
@given(scale=st.floats(0.05, 50), shift=st.floats(-20, 20), seed=st.integers(0, 1000))
def test_depth_does_not_see_scale_and_shift(scale, shift, seed):
    random = np.random.default_rng(seed)
    target = torch.from_numpy(random.uniform(0, 1, (2, 12, 12)))
    target[0, :3] = math.nan
    prediction = torch.from_numpy(random.normal(size=(2, 12, 12)))
    base = mean(depth_loss(prediction, target))
    assert mean(depth_loss(prediction * scale + shift, target)) == pytest.approx(base, rel=1e-3)
    assert mean(depth_loss(prediction, target * scale + shift)) == pytest.approx(base, rel=1e-3)
    assert mean(depth_loss(target.nan_to_num(7) * scale + shift, target)) == pytest.approx(
        0, abs=5e-4
    )  # the shift costs digits


def test_normals_by_hand():
    angles = torch.tensor([0.0, 30.0, 90.0, 180.0]).deg2rad()
    prediction = (
        torch.stack([angles.sin(), torch.zeros(4), angles.cos()])[None, :, None] * 3.0
    )  # any length
    target = torch.tensor([0.0, 0.0, 1.0]).view(1, 3, 1, 1).expand(1, 3, 1, 4)
    assert mean(find_task("normal").loss(prediction, target)) == pytest.approx(
        math.radians(75), abs=1e-5
    )
    unknown = target.clone()
    unknown[..., 3] = 0
    assert mean(find_task("normal").loss(prediction, unknown)) == pytest.approx(
        math.radians(40), abs=1e-5
    )


def some_prediction(task: str, size: int) -> torch.Tensor:
    return torch.randn(2, size, size) if task == "depth" else torch.randn(2, 3, size, size)


def some_targets(size: int) -> dict[str, torch.Tensor]:
    targets = {
        "seg": torch.randint(0, 3, (2, size, size)),
        "depth": torch.rand(2, size, size),
        "normal": F.normalize(torch.randn(2, 3, size, size), dim=1),
    }
    targets["seg"][0, 0], targets["depth"][0, 0], targets["normal"][0, :, 0] = IGNORE, math.nan, 0
    return targets


@pytest.mark.parametrize("task", ["seg", "depth", "normal"])
@pytest.mark.parametrize("kind", ["empty", "constant", "one pixel"])
def test_nothing_to_learn_is_zero_never_nan(task, kind):
    model = nn.Linear(4, 4)
    prediction = model(some_prediction(task, 4))
    targets = {
        "seg": torch.full((2, 4, 4), IGNORE),
        "depth": torch.full((2, 4, 4), math.nan),
        "normal": torch.zeros(2, 3, 4, 4),
    }
    if kind == "constant":
        targets["depth"] = torch.full((2, 4, 4), 0.7)
    if kind == "one pixel":
        targets["depth"][0, 1, 1] = 1.0
    total, count = find_task(task).loss(prediction, targets[task])
    total.backward()
    assert total == 0 and count == 0 and find_task(task).count(targets[task]) == 0
    assert all((p.grad == 0).all() for p in model.parameters())


@pytest.mark.parametrize("task", ["seg", "depth", "normal"])
def test_degenerate_predictions_have_finite_gradients(task):
    targets = some_targets(4)
    perfect = {
        "seg": F.one_hot(targets["seg"].clamp(min=0), 3).permute(0, 3, 1, 2) * 1e4,
        "depth": targets["depth"].nan_to_num(0),
        "normal": targets["normal"],
    }[task].float()
    for prediction in (perfect, -perfect, torch.zeros_like(perfect), torch.full_like(perfect, 1e4)):
        prediction = prediction.clone().requires_grad_()
        total, _ = find_task(task).loss(prediction, targets[task])
        total.backward()
        assert torch.isfinite(total) and torch.isfinite(prediction.grad).all()


@pytest.mark.parametrize("offset", [0.0, 1.0, 4.0])
def test_depth_learns_in_bf16_as_in_fp32(offset):
    torch.manual_seed(0)
    heads = TaskHeads([8], {"depth": 1}, width=16)
    nn.init.constant_(heads.tasks["depth"][2].bias, offset)
    maps, target = [torch.randn(2, 8, 4, 4)], torch.rand(2, 32, 32)
    gradients = []
    for enabled in (False, True):
        heads.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            prediction = heads(maps, (32, 32))["depth"]
        depth_loss(prediction, target)[0].backward()
        gradients.append(torch.cat([each.grad.flatten() for each in heads.parameters()]))
    assert F.cosine_similarity(*gradients, dim=0) > 0.99


@pytest.mark.parametrize("task", ["seg", "depth", "normal"])
def test_count_is_known_from_the_labels_and_sums_add_up(task):
    prediction, target = some_prediction(task, 8), some_targets(8)[task]
    total, count = find_task(task).loss(prediction, target)
    assert count.float() == find_task(task).count(target)
    halves = [find_task(task).loss(prediction[i : i + 1], target[i : i + 1]) for i in range(2)]
    assert torch.allclose(sum(t for t, _ in halves), total, rtol=1e-5)
    assert sum(c for _, c in halves) == count


@pytest.mark.parametrize("kappa", [0.0, 0.01, 0.5, 1.0, 3.0, 10.0, 50.0, 300.0])
def test_density_integrates_to_one_with_the_expected_angle(kappa):
    mean = torch.tensor([[0.0, 0.0, 1.0]], dtype=torch.float64)
    concentration = torch.tensor([kappa], dtype=torch.float64)

    def density(theta: float) -> float:
        normal = torch.tensor([[math.sin(theta), 0.0, math.cos(theta)]], dtype=torch.float64)
        return float(torch.exp(-losses.angmf_nll(mean, concentration, normal)))

    def integral(function) -> float:
        peak = min(math.pi, 20 / max(kappa, 1e-3))  # the density falls off within some 1/κ
        return quad(function, 0, peak, limit=200)[0] + quad(function, peak, math.pi, limit=200)[0]

    assert integral(lambda t: 2 * math.pi * math.sin(t) * density(t)) == pytest.approx(1, abs=2e-6)
    mean_angle = integral(lambda t: 2 * math.pi * math.sin(t) * t * density(t))
    assert float(losses.expected_angle(concentration)) == pytest.approx(mean_angle, abs=1e-5)


@settings(max_examples=50)
@given(st.floats(0, 1e4), st.sampled_from([0.0, 1e-8, 1e-4, 1.0, math.pi - 1e-6, math.pi]))
def test_loss_and_gradient_are_finite(kappa, theta):
    mean = torch.tensor([[0.0, 0, 1]], requires_grad=True)
    normal = torch.tensor([[math.sin(theta), 0, math.cos(theta)]])
    concentration = torch.tensor([kappa], requires_grad=True)
    loss = losses.angmf_nll(mean, concentration, normal).sum()
    loss.backward()
    for value in (loss, mean.grad, concentration.grad):
        assert torch.isfinite(value).all()
