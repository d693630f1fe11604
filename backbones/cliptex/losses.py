"""Every loss of CLIPTeX with its equation; ``objective.weighted_losses`` adds them up.

A dense loss gives (sum, count), not a mean, so that ranks and micro-batches can be added up; where
nothing is labelled, sum 0 with gradient 0, and count 0. (The objective divides by ``Task.count``,
which needs no prediction.) After a change here raise ``recipes.RECIPE_VERSION``, or weights of the
old formulas pass for those of the new. In order: the contrast, segmentation, depth, normals, and
the likelihood of normals by which an expert learns.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

ContrastiveLoss = Callable[..., Tensor]
Summed = tuple[Tensor, Tensor]  # (sum, count), so that ranks and micro-batches can be added up
IGNORE = (
    -100
)  # of targets of classes, as of torch's cross-entropy; in files it is ``UNKNOWN_CLASS``


def contrastive_loss(clip: nn.Module, rank: int = 0, world: int = 1) -> ContrastiveLoss:
    """The contrastive loss of an open_clip model: symmetric InfoNCE (Radford et al. 2021, fig. 3),

        L = −1/2N Σ_i [ log softmax_j(τ x_i · y_j)_i + log softmax_j(τ x_j · y_i)_i ],

    or, where the model has a logit bias b, the sigmoid loss of SigLIP (Zhai et al. 2023),

        L = −1/N Σ_ij log σ(z_ij (τ x_i · y_j + b)),        z_ij = 1 if i = j, else −1.

    Each rank scores its own rows against the columns of all; averaged over ranks, as DDP averages
    gradients, loss and gradients are those of one process with the joint batch. All ranks have
    equally many rows.

    Args:
        rank, world: this process and how many there are.

    Returns:
        a function of ``image`` x and ``text`` y, (n, d) unit-length embeddings, ``logit_scale`` τ
        (exponentiated) and ``logit_bias``, scalars, that gives a scalar float32.
    """
    from open_clip.loss import ClipLoss, SigLipLoss  # slow to import, and no other loss needs it

    if getattr(clip, "logit_bias", None) is not None:
        loss: Any = SigLipLoss(rank=rank, world_size=world, dist_impl="gather")
    else:
        loss = ClipLoss(local_loss=True, gather_with_grad=True, rank=rank, world_size=world)

    def compute(
        image: Tensor, text: Tensor, logit_scale: Tensor, logit_bias: Tensor | None = None
    ) -> Tensor:
        return loss(image.float(), text.float(), logit_scale, logit_bias)

    return compute


def segmentation_loss(logits: Tensor, target: Tensor) -> Summed:
    """Cross-entropy, −log softmax(z)_y, over labelled pixels, and their number.

    Args:
        logits: z, (N, classes, H, W).
        target: y, (N, H, W) int64, ``IGNORE`` where unknown.
    """
    total = F.cross_entropy(logits.float(), target, ignore_index=IGNORE, reduction="sum")
    return total, (target != IGNORE).sum().float()


FLAT = 1e-6
MIN_SPREAD = 1e-2  # of a prediction: heads begin at 0.02 to 0.2


def depth_loss(
    prediction: Tensor, target: Tensor, *, gradient_weight: float = 0.5, scales: int = 4
) -> Summed:
    """Scale-and-shift-invariant loss for relative inverse depth (Ranftl et al. 2020, TPAMI 44(3),
    eqs. 5–6 and 11).

    Prediction and target are each aligned by robust statistics of their labelled pixels, t(d) =
    median(d), s(d) = mean |d − t(d)|, d̂ = (d − t) / s, where s of a prediction is at least
    ``MIN_SPREAD``, so that the gradient of a constant is bounded; with R = d̂ − d̂* the loss of an
    image with M labelled pixels is

        1/M Σ |R|  +  α Σ_k 1/M_k Σ (|∇x R_k| + |∇y R_k|),        k = 0 … K − 1, every 2^k-th pixel,
        labelled neighbours

    Args:
        prediction: (N, H, W), any scale and shift.
        target: (N, H, W) relative inverse depth, NaN where unknown.
        gradient_weight, scales: α and K.

    Returns:
        sum over the images that have at least two labelled pixels and are not flat (a constant has
        no scale), and the number of those images.
    """
    aligned_target, mask, used = align_target(target)
    aligned, _ = _aligned(prediction.float(), mask, MIN_SPREAD)
    residual = torch.where(mask, aligned - aligned_target, 0.0)
    total = (residual.abs().sum((1, 2)) / mask.sum((1, 2)).clamp(min=1)).sum()
    for k in range(scales):
        r, m = residual[:, :: 2**k, :: 2**k], mask[:, :: 2**k, :: 2**k]
        pixels = m.sum((1, 2)).clamp(min=1)
        for dim in (1, 2):
            both = m.narrow(dim, 1, m.shape[dim] - 1) & m.narrow(dim, 0, m.shape[dim] - 1)
            step = (r.diff(dim=dim).abs() * both).sum((1, 2))
            total = total + gradient_weight * (step / pixels).sum()
    return total, used.sum()


def align_target(target: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The aligned target and the masks of pixels (N, H, W) and images (N,) that count."""
    valid = torch.isfinite(target)
    target = torch.nan_to_num(target.float())
    aligned, spread = _aligned(target, valid)
    used = (valid.sum((1, 2)) >= 2) & (spread > FLAT * target.abs().amax((1, 2)).clamp(min=1e-12))
    return aligned, valid & used[:, None, None], used


def _aligned(values: Tensor, mask: Tensor, min_spread: float = 1e-6) -> tuple[Tensor, Tensor]:
    """Align each (H, W) map by its masked pixels.

    The median is the lower one for even counts, as ``torch.median``'s. Without masked pixels:
    centre 0, deviation ~0.

    Returns:
        (v − median) / mean absolute deviation, and that deviation.
    """
    flat, count = values.flatten(1), mask.sum((1, 2))
    ordered = torch.where(mask.flatten(1), flat, math.inf).sort(1).values
    centre = ordered.gather(1, ((count - 1).clamp(min=0) // 2)[:, None])
    centre = torch.where(count[:, None] > 0, centre, 0.0)[..., None]
    deviation = torch.where(mask, (values - centre).abs(), 0.0).sum((1, 2)) / count.clamp(min=1)
    return (values - centre) / deviation.clamp(min=min_spread)[:, None, None], deviation


def normal_loss(prediction: Tensor, target: Tensor) -> Summed:
    """Angles θ = arccos(μᵀn) in radians (Bae et al. 2021, ICCV, eq. 4) over labelled pixels, and
    their number.

    Args:
        prediction: μ, (N, 3, H, W), of any length.
        target: n, (N, 3, H, W) unit vectors, zero where unknown.
    """
    theta = angle(F.normalize(prediction.float(), dim=1, eps=1e-6), target.float())
    valid = has_direction(target)
    return torch.where(valid, theta, 0.0).sum(), valid.sum().float()


def has_direction(target: Tensor) -> Tensor:
    """Where vectors (N, 3, H, W) are not zero: (N, H, W) bool."""
    return target.square().sum(1) > 0.25


def angle(mean: Tensor, normal: Tensor, dim: int = 1) -> Tensor:
    """Angle in radians between unit vectors, in [0, π].

    atan2(|μ × n|, μᵀn) equals arccos(μᵀn), but its gradient stays finite at 0 and π, and it needs
    no clamp, which would make all angles below 0.1° equal.
    """
    sine = torch.linalg.cross(mean, normal, dim=dim).square().sum(dim).add(1e-12).sqrt()
    return torch.atan2(sine, (mean * normal).sum(dim))


MIN_KAPPA = 0.01


def angmf_loss(outputs: Tensor, target: Tensor) -> Summed:
    """``angmf_nll`` over labelled pixels, and their number.

    Args:
        outputs: raw, (N, 4, H, W), see ``split_angmf``.
        target: as of ``normal_loss``.
    """
    mean, kappa = split_angmf(outputs)
    valid = has_direction(target)
    return (angmf_nll(mean, kappa, target) * valid).sum(), valid.sum()


def angmf_nll(mean: Tensor, kappa: Tensor, normal: Tensor, dim: int = 1) -> Tensor:
    """−log p(n | μ, κ) of the angular von Mises–Fisher distribution (Bae, Budvytis, Cipolla, ICCV
    2021, eq. 5, with the constant 2π kept so that it is a density):

        p(n | μ, κ) = (κ² + 1) exp(−κ θ) / (2π (1 + exp(−κπ)))

    ``mean`` and ``normal`` are unit vectors along ``dim``, ``kappa`` ≥ 0 and the result have their
    shape without it.
    """
    return angmf_nll_of_angle(angle(mean, normal, dim), kappa) + math.log(2 * math.pi)


def angmf_nll_of_angle(theta: Tensor, kappa: Tensor) -> Tensor:
    """``angmf_nll`` less log 2π, of angles in radians.

    Stable for every κ: log(1 + exp(−κπ)) is a softplus, κ² + 1 a ``log1p``.
    """
    return -torch.log1p(kappa.square()) + kappa * theta + F.softplus(-math.pi * kappa)


def expected_angle(kappa: Tensor) -> Tensor:
    """E[θ] in radians: 2κ / (κ² + 1) + π exp(−κπ) / (1 + exp(−κπ)) (eq. 6 there)."""
    return 2 * kappa / (kappa.square() + 1) + math.pi * torch.sigmoid(-math.pi * kappa)


def concentration(raw: Tensor) -> Tensor:
    """κ = ELU(x) + 1 + ``MIN_KAPPA`` of a raw output."""
    return F.elu(raw) + 1 + MIN_KAPPA


def split_angmf(outputs: Tensor) -> tuple[Tensor, Tensor]:
    """Raw outputs (N, 4, H, W) → unit μ (N, 3, H, W) and κ (N, H, W)."""
    return F.normalize(outputs[:, :3], dim=1, eps=1e-6), concentration(outputs[:, 3])
