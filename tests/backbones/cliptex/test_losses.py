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


@pytest.mark.parametrize("bias", [None, -3.0])
def test_cached_gradients_are_the_gradients(bias):
    values = {name: F.normalize(torch.randn(6, 4), dim=1) for name in ("image", "text")}
    scalars = {"logit_scale": torch.tensor(5.0)}
    if bias is not None:
        scalars["logit_bias"] = torch.tensor(bias)
    leaves = {name: each.clone().requires_grad_() for name, each in (values | scalars).items()}
    expected = (ClipLoss() if bias is None else SigLipLoss())(*leaves.values())
    gradients = torch.autograd.grad(expected, list(leaves.values()))
    value, cached = cached_gradients(values | scalars, contrastive_loss(nn.ParameterDict(scalars)))
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
    for options, gradients in (
        ({"gradient_weight": 0.0}, 0.0),
        ({"gradient_weight": 0.5, "scales": 1}, 0.5),
        ({}, 0.5 + 0.5),
    ):
        loss = mean(depth_loss(prediction, target, **options))
        assert loss == pytest.approx(0.5 + 0.5 * gradients)


@settings(max_examples=30)
@given(scale=st.floats(0.05, 50), shift=st.floats(-20, 20), seed=st.integers(0, 1000))
def test_depth_does_not_see_scale_and_shift(scale, shift, seed):
    random = np.random.default_rng(seed)
    target = torch.from_numpy(random.uniform(0, 1, (2, 12, 12)))
    target[0, :3] = math.nan
    prediction = torch.from_numpy(random.normal(size=(2, 12, 12)))
    base = pytest.approx(mean(depth_loss(prediction, target)), rel=1e-3)
    assert mean(depth_loss(prediction * scale + shift, target)) == base
    assert mean(depth_loss(prediction, target * scale + shift)) == base
    perfect = mean(depth_loss(target.nan_to_num(7) * scale + shift, target))
    assert perfect == pytest.approx(0, abs=5e-4), "the shift costs digits"


def test_normals_by_hand():
    angles = torch.tensor([0.0, 30.0, 90.0, 180.0]).deg2rad()
    prediction = torch.stack([angles.sin(), torch.zeros(4), angles.cos()])[None, :, None]
    target = torch.zeros(1, 3, 1, 4)
    for first, degrees in ((4, 75), (3, 40)):  # the others are unknown
        target[:, 2], target[..., first:] = 1, 0
        loss = mean(find_task("normal").loss(3.0 * prediction, target))  # of any length
        assert loss == pytest.approx(math.radians(degrees), abs=1e-5)


TASKS = ("seg", "depth", "normal")


def some_labels(task: str, size: int) -> tuple[torch.Tensor, torch.Tensor]:
    """A prediction and a target, whose first row of the first image is unknown."""
    if task == "depth":
        prediction, target = torch.randn(2, size, size), torch.rand(2, size, size)
        target[0, 0] = math.nan
        return prediction, target
    prediction = torch.randn(2, 3, size, size)
    if task == "seg":
        target = torch.randint(0, 3, (2, size, size))
        target[0, 0] = IGNORE
    else:
        target = F.normalize(torch.randn(2, 3, size, size), dim=1)
        target[0, :, 0] = 0
    return prediction, target


ONE_DEPTH = torch.full((2, 4, 4), math.nan)
ONE_DEPTH[0, 1, 1] = 1.0


@pytest.mark.parametrize(
    ("task", "target"),
    [
        ("seg", torch.full((2, 4, 4), IGNORE)),
        ("normal", torch.zeros(2, 3, 4, 4)),
        ("depth", torch.full((2, 4, 4), math.nan)),
        ("depth", torch.full((2, 4, 4), 0.7)),
        ("depth", ONE_DEPTH),
    ],
)
def test_nothing_to_learn_is_zero_never_nan(task, target):
    model = nn.Linear(4, 4)
    total, count = find_task(task).loss(model(some_labels(task, 4)[0]), target)
    total.backward()
    assert total == 0 and count == 0 and find_task(task).count(target) == 0
    assert all((p.grad == 0).all() for p in model.parameters())


@pytest.mark.parametrize("task", TASKS)
def test_degenerate_predictions_have_finite_gradients(task):
    _, target = some_labels(task, 4)
    perfect = target.nan_to_num(0)
    if task == "seg":
        perfect = F.one_hot(target.clamp(min=0), 3).permute(0, 3, 1, 2) * 1e4
    for factor, offset in ((1, 0), (-1, 0), (0, 0), (0, 1e4)):
        prediction = (perfect.float() * factor + offset).requires_grad_()
        total, _ = find_task(task).loss(prediction, target)
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


@pytest.mark.parametrize("task", TASKS)
def test_count_is_known_from_the_labels_and_sums_add_up(task):
    labels = some_labels(task, 8)
    total, count = find_task(task).loss(*labels)
    assert count.float() == find_task(task).count(labels[1])
    halves = [
        find_task(task).loss(*half) for half in zip(*(e.split(1) for e in labels), strict=True)
    ]
    assert torch.allclose(sum(t for t, _ in halves), total, rtol=1e-5)
    assert sum(c for _, c in halves) == count


@pytest.mark.parametrize("kappa", [0.0, 0.01, 0.5, 1.0, 3.0, 10.0, 50.0, 300.0])
def test_density_integrates_to_one_with_the_expected_angle(kappa):
    concentration = torch.tensor([kappa], dtype=torch.float64)
    mean = torch.tensor([[0.0, 0.0, 1.0]], dtype=torch.float64)
    peak = min(math.pi, 20 / max(kappa, 1e-3))  # the density falls off within some 1/κ

    def integral(power: int) -> float:
        def density(theta: float) -> float:
            normal = torch.tensor([[math.sin(theta), 0.0, math.cos(theta)]], dtype=torch.float64)
            value = torch.exp(-losses.angmf_nll(mean, concentration, normal))
            return 2 * math.pi * math.sin(theta) * theta**power * float(value)

        return sum(quad(density, *ends, limit=200)[0] for ends in ((0, peak), (peak, math.pi)))

    assert integral(0) == pytest.approx(1, abs=2e-6)
    assert float(losses.expected_angle(concentration)) == pytest.approx(integral(1), abs=1e-5)


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
