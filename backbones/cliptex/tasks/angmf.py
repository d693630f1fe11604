"""The angular von Mises–Fisher distribution of surface normals (Bae, Budvytis, Cipolla, ICCV 2021).

p(n | μ, κ) = (κ² + 1) exp(−κ θ) / (2π (1 + exp(−κπ))),   θ = arccos(μᵀn)
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

MIN_KAPPA = 0.01


def angle(mean: Tensor, normal: Tensor, dim: int = 1) -> Tensor:
    """Angle in radians between unit vectors, in [0, π].

    atan2(|μ × n|, μᵀn) equals arccos(μᵀn), but its gradient stays finite at 0 and π, and it needs
    no clamp, which would make all angles below 0.1° equal.
    """
    sine = torch.linalg.cross(mean, normal, dim=dim).square().sum(dim).add(1e-12).sqrt()
    return torch.atan2(sine, (mean * normal).sum(dim))


def nll(mean: Tensor, kappa: Tensor, normal: Tensor, dim: int = 1) -> Tensor:
    """−log p(n | μ, κ) (eq. 5 there, with the constant 2π kept so that it is a density).

    ``mean`` and ``normal`` are unit vectors along ``dim``, ``kappa`` ≥ 0 and the result have their
    shape without it.
    """
    return nll_of_angle(angle(mean, normal, dim), kappa) + math.log(2 * math.pi)


def nll_of_angle(theta: Tensor, kappa: Tensor) -> Tensor:
    """``nll`` less log 2π, of angles in radians.

    Stable for every κ: log(1 + exp(−κπ)) is a softplus, κ² + 1 a ``log1p``.
    """
    return -torch.log1p(kappa.square()) + kappa * theta + F.softplus(-math.pi * kappa)


def expected_angle(kappa: Tensor) -> Tensor:
    """E[θ] in radians: 2κ / (κ² + 1) + π exp(−κπ) / (1 + exp(−κπ)) (there, eq. 6)."""
    return 2 * kappa / (kappa.square() + 1) + math.pi * torch.sigmoid(-math.pi * kappa)


def concentration(raw: Tensor) -> Tensor:
    """κ = ELU(x) + 1 + ``MIN_KAPPA`` of a raw output."""
    return F.elu(raw) + 1 + MIN_KAPPA


def split(outputs: Tensor) -> tuple[Tensor, Tensor]:
    """Raw outputs (N, 4, H, W) → unit μ (N, 3, H, W) and κ (N, H, W)."""
    return F.normalize(outputs[:, :3], dim=1, eps=1e-6), concentration(outputs[:, 3])
