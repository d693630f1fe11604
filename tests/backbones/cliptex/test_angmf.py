"""The AngMF likelihood: a density, its closed forms, and gradients that stay finite."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.integrate import quad

from backbones.cliptex import losses


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
