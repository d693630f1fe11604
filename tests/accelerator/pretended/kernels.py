"""Operators that torch has for accelerators only, or that draw other random numbers on a CPU than
the same layer there: as functions of tensors on the CPU."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


def native_dropout(values: Tensor, p: float, train: bool | None) -> tuple[Tensor, Tensor]:
    """``F.dropout``, with the draws that it makes on a CPU."""
    if not train or p == 0:
        return values.clone(), torch.ones_like(values, dtype=torch.bool)
    noise = torch.empty_like(values).bernoulli_(1 - p)
    return values * (noise / (1 - p)), noise.bool()


def _channels(values: Tensor) -> list[int]:
    """The shape that broadcasts numbers of each channel over (N, C, …)."""
    return [1, -1] + [1] * (values.dim() - 2)


def _reduced(values: Tensor) -> list[int]:
    """All dimensions but that of the channels."""
    return [0, *range(2, values.dim())]


def batch_norm_stats(values: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """Mean and inverse deviation of each channel, of this process's share."""
    values = values.float()
    variance = values.var(dim=_reduced(values), correction=0)
    return values.mean(dim=_reduced(values)), (variance + eps).rsqrt()


def batch_norm_gather_stats_with_counts(
    values: Tensor,
    means: Tensor,
    inverse: Tensor,
    running_mean: Tensor | None,
    running_variance: Tensor | None,
    momentum: float,
    eps: float,
    counts: Tensor,
) -> tuple[Tensor, Tensor]:
    """Mean and inverse deviation over (processes, C) statistics; moves the running ones."""
    share = counts.float().view(-1, 1)
    total = share.sum()
    variances = inverse.pow(-2) - eps
    mean = (means * share).sum(dim=0) / total
    variance = ((variances + (means - mean).square()) * share).sum(dim=0) / total
    if running_mean is not None and running_variance is not None:
        running_mean.lerp_(mean, momentum)
        running_variance.lerp_(variance * total / (total - 1), momentum)
    return mean, (variance + eps).rsqrt()


def batch_norm_elemt(
    values: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    mean: Tensor,
    inverse: Tensor,
    eps: float,
) -> Tensor:
    """Normalise."""
    shape = _channels(values)
    output = (values - mean.view(shape)) * inverse.view(shape)
    if weight is not None:
        output = output * weight.view(shape)
    return output if bias is None else output + bias.view(shape)


def batch_norm_backward_reduce(
    gradient: Tensor,
    values: Tensor,
    mean: Tensor,
    inverse: Tensor,
    weight: Tensor | None,
    *requested: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Sums over this process's share: of the gradient, of its product with the centred values, and
    the gradients of weight and bias."""
    centred = values - mean.view(_channels(values))
    total = gradient.sum(dim=_reduced(values))
    product = (gradient * centred).sum(dim=_reduced(values))
    return total, product, product * inverse, total


def batch_norm_backward_elemt(
    gradient: Tensor,
    values: Tensor,
    mean: Tensor,
    inverse: Tensor,
    weight: Tensor | None,
    total: Tensor,
    product: Tensor,
    counts: Tensor,
) -> Tensor:
    """The gradient of the values, from sums over all processes."""
    shape, count = _channels(values), counts.sum()
    centred = values - mean.view(shape)
    output = gradient - (total / count).view(shape)
    output = output - centred * (inverse.square() * product / count).view(shape)
    scale = inverse if weight is None else inverse * weight
    return output * scale.view(shape)


KERNELS: dict[str, Callable[..., Any]] = {
    kernel.__name__: kernel
    for kernel in (
        native_dropout,
        batch_norm_stats,
        batch_norm_gather_stats_with_counts,
        batch_norm_elemt,
        batch_norm_backward_reduce,
        batch_norm_backward_elemt,
    )
}
