"""Embeddings of all ranks, with gradient, and the gradient cache that lets a large batch pass through in pieces."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, distributed
from torch.nn import functional as F


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


def contrastive_loss(image: Tensor, text: Tensor, logit_scale: Tensor) -> Tensor:
    """Symmetric InfoNCE (Radford et al. 2021, fig. 3) over the batch of all ranks.

        L = ½ [CE(s · I Tᵀ, diagonal) + CE(s · T Iᵀ, diagonal)]

    Each rank scores its own rows against the columns of all; averaged over ranks (as DDP averages gradients), loss and
    gradients equal those of one process with the joint batch.

    Args:
        image, text: (n, d) unit-length embeddings of this rank's pairs; every rank brings the same n.
        logit_scale: scalar s, already exponentiated.

    Returns:
        scalar float32: the mean over this rank's rows.
    """
    image, text = image.float(), text.float()
    rank, _ = world()
    all_image, all_text = gather_with_gradient(image), gather_with_gradient(text)
    target = torch.arange(len(image), device=image.device) + rank * len(image)
    to_text = F.cross_entropy(logit_scale * image @ all_text.T, target)
    to_image = F.cross_entropy(logit_scale * text @ all_image.T, target)
    return (to_text + to_image) / 2


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
