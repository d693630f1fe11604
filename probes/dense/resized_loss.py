"""Cross-entropy at the label's resolution of logits at the features' resolution, without the large
logits in memory.

``F.cross_entropy(F.interpolate(logits, size, mode="bilinear"), labels)`` and its gradient take most
of a 1×1 probe's
time: each of a dozen passes goes over logits many times as large as the cache. Here some images at
a time are resized (by two products with small matrices: bilinear resizing is linear and separable),
scored and differentiated while they are in the cache; what remains of them is the gradient at the
features' resolution.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

CACHED_BYTES = 2**20  # of resized logits at once on a CPU; more where images are larger
GPU_BYTES = 2**28


@lru_cache(maxsize=64)
def resizing(old: int, new: int, align_corners: bool, device: torch.device) -> Tensor:
    """(old, new) weights: a row of ``old`` values times them is that row resized as
    ``F.interpolate`` does it."""
    with torch.inference_mode(False):  # kept for later, also where gradients are
        rows = torch.eye(old)[None]
        return F.interpolate(rows, new, mode="linear", align_corners=align_corners)[0].to(device)


# an operator of its own: the products that resize are, like any resizing, no part of a probe's
# counted operations
@torch.library.custom_op("cliptex::resized_cross_entropy", mutates_args=())
def _resized_cross_entropy(
    logits: Tensor, labels: Tensor, ignore_index: int, align_corners: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Sum of the loss over all scored pixels, its gradient by ``logits``, and how many pixels are
    right."""
    images, classes, *low = logits.shape
    high = labels.shape[1:]
    rows, columns = (
        resizing(old, new, align_corners, logits.device) for old, new in zip(low, high, strict=True)
    )
    most = CACHED_BYTES if logits.device.type == "cpu" else GPU_BYTES
    step = max(1, most // (4 * classes * high[0] * high[1]))
    total, right = logits.new_zeros(()), labels.new_zeros(())
    gradient = torch.empty_like(logits, memory_format=torch.contiguous_format)
    for start in range(0, images, step):
        part, truth = logits[start : start + step], labels[start : start + step]
        scored = truth != ignore_index
        truth = torch.where(scored, truth, 0)[:, None]
        large = rows.T @ (part @ columns)
        right += (scored & (large.gather(1, truth) >= large.amax(dim=1, keepdim=True))[:, 0]).sum()
        large = F.log_softmax(large, dim=1)
        total -= (large.gather(1, truth)[:, 0] * scored).sum()
        large.exp_().scatter_add_(1, truth, large.new_full((), -1.0).expand(truth.shape))
        large *= scored[:, None]
        gradient[start : start + step] = (rows @ large) @ columns.T
    return total, gradient, right


@_resized_cross_entropy.register_fake
def _(
    logits: Tensor, labels: Tensor, ignore_index: int, align_corners: bool
) -> tuple[Tensor, Tensor, Tensor]:
    return logits.new_empty(()), torch.empty_like(logits), labels.new_empty(())


def _keep(ctx: Any, inputs: Any, output: Any) -> None:
    ctx.save_for_backward(output[1])


def _backward(ctx: Any, slope: Tensor, *_: Tensor) -> tuple[Tensor, None, None, None]:
    (gradient,) = ctx.saved_tensors
    return slope * gradient, None, None, None


_resized_cross_entropy.register_autograd(_backward, setup_context=_keep)


def resized_cross_entropy(
    logits: Tensor, labels: Tensor, ignore_index: int, align_corners: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Mean cross-entropy over the scored pixels of logits resized (bilinear) to the labels, as a
    scalar with a gradient; the number of pixels that are right; the number that are scored.

    The same as ``F.interpolate`` and ``F.cross_entropy`` up to float32's rounding.

    Args:
        logits: (N, classes, h, w) float32.
        labels: (N, H, W) int64, class indices or ``ignore_index``.
    """
    total, _, right = _resized_cross_entropy(logits, labels, ignore_index, align_corners)
    scored = (labels != ignore_index).sum()
    return total / scored.clamp(min=1), right, scored
