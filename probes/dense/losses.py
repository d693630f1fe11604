"""The cross-entropy of logits that are resized to the labels.

``F.cross_entropy(F.interpolate(logits, size, mode="bilinear"), labels)`` and its gradient take most
of a linear probe's time: each of a dozen passes goes over logits many times as large as the cache.
Here a few images at a time are resized (by two products with small matrices: bilinear resizing is
linear and separable), scored and differentiated while they are in the cache; only the gradient at
the features' resolution remains.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
import torch.nn.functional as F
from mmseg.models.losses import CrossEntropyLoss
from torch import Tensor

from cliptex_common.device import is_accelerator

CACHED_BYTES = 2**20  # of resized logits at once on a CPU; more where images are larger
GPU_BYTES = 2**28


@functools.lru_cache(maxsize=64)
@torch.inference_mode(False)  # it is used where gradients are, too
def resizing(old: int, new: int, align_corners: bool, device: torch.device) -> Tensor:
    """(old, new) weights: a row of ``old`` values times them is that row resized as
    ``F.interpolate`` does it."""
    rows = torch.eye(old)[None]
    return F.interpolate(rows, new, mode="linear", align_corners=align_corners)[0].to(device)


class _ResizedCrossEntropy(torch.autograd.Function):
    """Sum of the loss over all scored pixels, and how many pixels are right."""

    @staticmethod
    def forward(
        ctx: Any, logits: Tensor, labels: Tensor, ignore_index: int, align_corners: bool
    ) -> tuple[Tensor, Tensor]:
        images, classes, *low = logits.shape
        high = labels.shape[1:]
        rows, columns = (
            resizing(old, new, align_corners, logits.device)
            for old, new in zip(low, high, strict=True)
        )
        bytes_at_once = GPU_BYTES if is_accelerator(logits.device) else CACHED_BYTES
        step = max(1, bytes_at_once // (4 * classes * high[0] * high[1]))
        total, right = logits.new_zeros(()), labels.new_zeros(())
        gradient = torch.empty_like(logits, memory_format=torch.contiguous_format)
        for start in range(0, images, step):
            part, target = logits[start : start + step], labels[start : start + step]
            scored = target != ignore_index
            target = torch.where(scored, target, 0)[:, None]
            large = rows.T @ (part @ columns)
            is_best = (large.gather(1, target) >= large.amax(dim=1, keepdim=True))[:, 0]
            right += (scored & is_best).sum()
            large = F.log_softmax(large, dim=1)
            total -= (large.gather(1, target)[:, 0] * scored).sum()
            large.exp_().scatter_add_(1, target, large.new_full((), -1.0).expand(target.shape))
            large *= scored[:, None]
            gradient[start : start + step] = (rows @ large) @ columns.T
        ctx.save_for_backward(gradient)
        ctx.mark_non_differentiable(right)
        return total, right

    @staticmethod
    def backward(ctx: Any, slope: Tensor, *_: Tensor) -> tuple[Tensor, None, None, None]:
        (gradient,) = ctx.saved_tensors
        return slope * gradient, None, None, None


def resized_cross_entropy(
    logits: Tensor, labels: Tensor, ignore_index: int, align_corners: bool, over_all: bool = False
) -> tuple[Tensor, Tensor, Tensor]:
    """Mean cross-entropy over the scored pixels of logits resized (bilinear) to the labels, as a
    scalar with a gradient; the number of pixels that are right; the number that are scored.

    The same as ``F.interpolate`` and ``F.cross_entropy`` up to float32's rounding.

    Args:
        logits: (N, classes, h, w) float32.
        labels: (N, H, W) int64, class indices or ``ignore_index``.
        over_all: the mean is over all pixels, those that are not scored as 0.
    """
    total, right = _ResizedCrossEntropy.apply(logits, labels, ignore_index, align_corners)
    scored = (labels != ignore_index).sum()
    return total / (labels.numel() if over_all else scored.clamp(min=1)), right, scored


def is_plain(loss: Any) -> bool:
    """Whether a loss is the mean cross-entropy over the pixels, with or without those that are
    ignored."""
    return (
        type(loss) is CrossEntropyLoss
        and not loss.use_sigmoid
        and not loss.use_mask
        and loss.class_weight is None
        and loss.reduction == "mean"
    )
