"""``depth``: relative inverse depth, larger is nearer, of any affine scale."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from backbones.cliptex.ground_truth import MapFolders
from backbones.cliptex.targets import ScalarMap
from backbones.cliptex.tasks.base import Summed
from cliptex_common.dense_maps.read import DEEP, read_stored
from cliptex_common.dense_maps.scores import depth_scores

FLAT = 1e-6
MIN_SPREAD = 1e-2  # of a prediction: heads begin at 0.02 to 0.2


class InverseDepth(ScalarMap):
    """Inverse depth up to scale and shift, learned by the loss of MiDaS."""

    name = "depth"
    folders = MapFolders("nyu", val="test")
    quantisation = (
        "65535 steps of the square root of (d - min) / (max - min): over 0.3 to 10 m at most 0.3 mm"
    )

    def loss(self, prediction: Tensor, target: Tensor) -> Summed:
        return depth_loss(prediction, target)

    def count(self, target: Tensor) -> Tensor:
        return _align_target(target)[2].sum().float()

    def read(self, path: Path) -> np.ndarray:
        """A 16-bit PNG in millimetres, 0 unknown → inverse depth in 1/m."""
        stored = read_stored(path, DEEP, "a depth map is a 16-bit grey PNG in millimetres")
        metres = stored.astype(np.float32) / 1000
        return np.divide(1, metres, out=np.full_like(metres, np.nan), where=metres > 0)

    def encode(self, label: np.ndarray) -> bytes:
        """In even steps of the square root of the label's own range, near is light.

        They are finest where inverse depth is small, where a step of it is many metres.
        """
        values = label[np.isfinite(label)]
        low, high = (float(values.min()), float(values.max())) if values.size else (0.0, 0.0)
        return super().encode(np.sqrt((label - low) / max(high - low, 1e-30)))

    def decode(self, data: bytes) -> np.ndarray:
        """In [0, 1]: 0 the farthest and 1 the nearest of the image."""
        return np.square(super().decode(data))

    def score(self, prediction: Tensor, target: Tensor) -> dict[str, Tensor]:
        """``abs_rel`` and ``delta1`` of depth, after the least-squares scale and shift of inverse
        depth (MiDaS's protocol: Ranftl et al. 2020); NaN with fewer than two labelled pixels."""
        valid = torch.isfinite(target)
        x, y = (each[valid].double().numpy() for each in (prediction, target))
        design = np.stack([x, np.ones_like(x)], 1)
        aligned = np.ones_like(y)
        if len(y) > 1:
            aligned = np.maximum(design @ np.linalg.lstsq(design, y, rcond=None)[0], y.min() / 10)
        depth, real = (torch.from_numpy(1 / each) for each in (aligned, y))
        scores = depth_scores(depth, real, torch.full((len(y),), len(y) > 1))
        return {name: scores[name] for name in ("abs_rel", "delta1")}


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
    aligned_target, mask, used = _align_target(target)
    aligned, _ = _align(prediction.float(), mask, MIN_SPREAD)
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


def _align_target(target: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The aligned target and the masks of pixels (N, H, W) and images (N,) that count."""
    valid = torch.isfinite(target)
    target = torch.nan_to_num(target.float())
    aligned, spread = _align(target, valid)
    used = (valid.sum((1, 2)) >= 2) & (spread > FLAT * target.abs().amax((1, 2)).clamp(min=1e-12))
    return aligned, valid & used[:, None, None], used


def _align(values: Tensor, mask: Tensor, min_spread: float = 1e-6) -> tuple[Tensor, Tensor]:
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


TASK = InverseDepth()
