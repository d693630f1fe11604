"""The losses of CLIPTeX for its pseudo-labels, beside the contrastive one.

They return (total, count), not a mean: the mean over a global batch is then the same however the batch is split
over ranks and micro-batches. An empty mask gives total 0 with gradient 0, and count 0.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn import functional as F

from backbones.cliptex.augment import IGNORE

Summed = tuple[Tensor, Tensor]
FLAT = 1e-6


def segmentation_loss(logits: Tensor, target: Tensor) -> Summed:
    """Pixel-wise cross-entropy, −log softmax(logits)[target].

    Args:
        logits: (N, C, H, W).
        target: (N, H, W) int64 classes, ``IGNORE`` where not labelled.

    Returns:
        sum over labelled pixels, and their number.
    """
    count = (target != IGNORE).sum()
    return F.cross_entropy(logits.float(), target, ignore_index=IGNORE, reduction="sum"), count


def depth_loss(prediction: Tensor, target: Tensor, *, gradient_weight: float = 0.5, scales: int = 4) -> Summed:
    """Scale-and-shift-invariant loss for relative inverse depth (Ranftl et al. 2020, TPAMI 44(3), eqs. 5–6 and 11).

    Prediction and target are each aligned by robust statistics of their labelled pixels, t(d) = median(d),
    s(d) = mean |d − t(d)|, d̂ = (d − t) / s; with R = d̂ − d̂* the loss of an image with M labelled pixels is

        1/M Σ |R|  +  α Σ_k 1/M_k Σ (|∇x R_k| + |∇y R_k|),        k = 0 … K − 1, every 2^k-th pixel, labelled neighbours

    Args:
        prediction: (N, H, W), any scale and shift.
        target: (N, H, W) relative inverse depth, NaN where unknown.
        gradient_weight, scales: α and K.

    Returns:
        sum over the images that have at least two labelled pixels and are not flat (a constant has no scale), and the
        number of those images.
    """
    aligned_target, mask, used = _align_target(target)
    aligned, _ = _align(prediction.float(), mask)
    residual = torch.where(mask, aligned - aligned_target, 0.0)
    total = (residual.abs().sum((1, 2)) / mask.sum((1, 2)).clamp(min=1)).sum()
    for k in range(scales if gradient_weight else 0):
        r, m = residual[:, :: 2**k, :: 2**k], mask[:, :: 2**k, :: 2**k]
        pixels = m.sum((1, 2)).clamp(min=1)
        for dim in (1, 2):
            both = m.narrow(dim, 1, m.shape[dim] - 1) & m.narrow(dim, 0, m.shape[dim] - 1)
            step = (r.diff(dim=dim).abs() * both).sum((1, 2))
            total = total + gradient_weight * (step / pixels).sum()
    return total, used.sum()


def _align_target(target: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The aligned target, the mask of pixels that count (N, H, W), and of images that count (N,)."""
    known = torch.isfinite(target)
    target = torch.nan_to_num(target.float())
    aligned, spread = _align(target, known)
    used = (known.sum((1, 2)) >= 2) & (spread > FLAT * target.abs().amax((1, 2)).clamp(min=1e-12))
    return aligned, known & used[:, None, None], used


def _align(values: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """((v − median) / mean absolute deviation, that deviation) over the masked pixels of each (H, W) map.

    The median is the lower one for even counts, as ``torch.median``'s. Without masked pixels: centre 0, deviation ~0.
    """
    flat, count = values.flatten(1), mask.sum((1, 2))
    ordered = torch.where(mask.flatten(1), flat, math.inf).sort(1).values
    centre = ordered.gather(1, ((count - 1).clamp(min=0) // 2)[:, None])
    centre = torch.where(count[:, None] > 0, centre, 0.0)[..., None]
    deviation = torch.where(mask, (values - centre).abs(), 0.0).sum((1, 2)) / count.clamp(min=1)
    return (values - centre) / deviation.clamp(min=1e-6)[:, None, None], deviation


def normal_loss(prediction: Tensor, target: Tensor, weight: Tensor | None = None) -> Summed:
    """Angle between normals in radians (the angular loss of Bae et al. 2021, ICCV, eq. 4), optionally weighted.

    The angle is atan2(|n × n*|, n · n*), which is arccos(n · n*) with a gradient that stays finite where both agree.
    With the expert's concentration κ as weight this is the part of its AngMF likelihood that depends on the prediction.

    Args:
        prediction: (N, 3, H, W), of any length.
        target: (N, 3, H, W) unit normals, zero where unknown.
        weight: (N, H, W) ≥ 0, for example κ; None weighs every labelled pixel 1.

    Returns:
        weighted sum over labelled pixels, and the sum of their weights.
    """
    weight = _normal_weight(target, weight)
    prediction = F.normalize(prediction.float(), dim=1, eps=1e-6)
    cross = torch.linalg.cross(prediction, target.float(), dim=1)
    sine = (cross * cross).sum(1).add(1e-12).sqrt()
    angle = torch.atan2(sine, (prediction * target.float()).sum(1))
    return torch.where(weight > 0, angle * weight, 0.0).sum(), weight.sum()


def _normal_weight(target: Tensor, weight: Tensor | None) -> Tensor:
    known = (target * target).sum(1) > 0.25
    return known.float() if weight is None else torch.nan_to_num(weight.float()) * known


def dense_loss(task: str, prediction: Tensor, targets: Mapping[str, Tensor]) -> Summed:
    """The loss of ``task`` (``seg``, ``depth`` or ``normal``) for its entry in ``targets``; see the functions above."""
    if task == "seg":
        return segmentation_loss(prediction, targets["seg"])
    if task == "depth":
        return depth_loss(prediction, targets["depth"])
    return normal_loss(prediction, targets["normal"], targets.get("normal_weight"))


def label_count(task: str, targets: Mapping[str, Tensor]) -> Tensor:
    """The count that ``dense_loss`` will return, from the labels alone; scalar float32."""
    if task == "seg":
        count = (targets["seg"] != IGNORE).sum()
    elif task == "depth":
        count = _align_target(targets["depth"])[2].sum()
    else:
        count = _normal_weight(targets["normal"], targets.get("normal_weight")).sum()
    return count.float()
