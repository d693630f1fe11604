"""Embeddings of all ranks, with gradient, and the gradient cache that lets a large batch pass through in pieces."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, distributed


def world() -> tuple[int, int]:
    """(rank, number of processes); (0, 1) without torch.distributed."""
    if distributed.is_available() and distributed.is_initialized():
        return distributed.get_rank(), distributed.get_world_size()
    return 0, 1


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(context: Any, local: Tensor) -> Tensor:
        rank, size = world()
        context.rank, context.rows = rank, len(local)
        parts = [torch.empty_like(local) for _ in range(size)]
        distributed.all_gather(parts, local.contiguous())
        return torch.cat(parts)

    @staticmethod
    def backward(context: Any, *gradients: Tensor) -> Tensor:
        # every rank's loss used these rows: their gradients are summed (an all-reduce, which every backend has)
        total = gradients[0].contiguous().clone()
        distributed.all_reduce(total)
        return total[context.rank * context.rows : (context.rank + 1) * context.rows]


def gather_with_gradient(local: Tensor) -> Tensor:
    """(n, d) of this rank → (n · ranks, d), in rank order; backward sums all ranks' gradients for its rows."""
    return local if world()[1] == 1 else _Gather.apply(local)


def sum_over_ranks(values: Tensor) -> Tensor:
    """Sum of a tensor without gradient over all ranks, on all ranks."""
    if world()[1] > 1:
        values = values.clone()
        distributed.all_reduce(values)
    return values


def cached_gradients(
    image: Tensor, text: Tensor, logit_scale: Tensor, loss: Any
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Contrastive loss of a batch whose embeddings were computed without gradient, and its gradients for them.

    Gradient caching (Gao et al. 2021, arXiv:2101.06983): a micro-batch is then run again with gradient and
    ``(embedding · cached gradient).sum()`` is backpropagated, which gives exactly the gradient of the whole batch.

    Returns:
        loss, and its gradients for ``image``, ``text`` and ``logit_scale``.
    """
    leaves = [tensor.detach().float().requires_grad_() for tensor in (image, text, logit_scale)]
    value = loss(*leaves)
    image_gradient, text_gradient, scale_gradient = torch.autograd.grad(value, leaves)
    return value.detach(), image_gradient, text_gradient, scale_gradient
