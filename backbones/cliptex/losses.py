"""open_clip's contrastive losses over the batch of all ranks, and gradient caching for them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from open_clip.loss import ClipLoss, SigLipLoss
from torch import Tensor, nn

from backbones.cliptex.training.distributed import world

ContrastiveLoss = Callable[..., Tensor]


def contrastive_loss(clip: nn.Module) -> ContrastiveLoss:
    """The contrastive loss of an open_clip model.

    It is ``SigLipLoss`` where the model has a logit bias (Zhai et al. 2023), else the symmetric
    InfoNCE of ``ClipLoss`` (Radford et al. 2021, fig. 3). Each rank scores its own rows against
    the columns of all; averaged over ranks, as DDP averages gradients, loss and gradients are those
    of one process with the joint batch. All ranks have equally many rows.

    Returns:
        a function of ``image`` and ``text``, (n, d) unit-length embeddings, ``logit_scale``
        (exponentiated) and ``logit_bias``, scalars, that gives a scalar float32.
    """
    rank, size = world()
    if getattr(clip, "logit_bias", None) is not None:
        loss: Any = SigLipLoss(rank=rank, world_size=size, dist_impl="gather")
    else:
        loss = ClipLoss(local_loss=True, gather_with_grad=True, rank=rank, world_size=size)

    def compute(
        image: Tensor, text: Tensor, logit_scale: Tensor, logit_bias: Tensor | None = None
    ) -> Tensor:
        return loss(image.float(), text.float(), logit_scale, logit_bias)

    return compute


def cached_gradients(
    embeddings: Mapping[str, Tensor], loss: ContrastiveLoss
) -> tuple[Tensor, dict[str, Tensor]]:
    """Loss of a batch that was embedded without gradient, and its gradients for the embeddings.

    Gradient caching (Gao et al. 2021, arXiv:2101.06983): each micro-batch is then run again with
    gradient and ``(embedding · cached gradient).sum()`` is backpropagated, which gives exactly the
    gradient of the complete batch.
    """
    leaves = {name: tensor.detach().float().requires_grad_() for name, tensor in embeddings.items()}
    value = loss(**leaves)
    gradients = torch.autograd.grad(value, list(leaves.values()))
    return value.detach(), dict(zip(leaves, gradients, strict=True))
