"""Depth: objectives and scores. What needs no torch is in ``probes.dense.depth``."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from mmengine.registry import MODELS
from mmseg.registry import METRICS
from torch import Tensor

from cliptex_common.dense_maps.scores import depth_scores
from probes.dense.metrics import TaskScores, cropped, note_empty
from probes.dense.objectives import TaskObjective


class MetricDepthObjective(TaskObjective):
    """Metres between two bounds. A pixel is valid when its ground truth is within [min_depth,
    max_depth] and above 0.

    Args:
        min_depth, max_depth: metres, 0 < min_depth < max_depth.
    """

    def __init__(self, min_depth: float, max_depth: float) -> None:
        super().__init__("depth")
        self.min_depth, self.max_depth = min_depth, max_depth

    def valid(self, target: Tensor) -> Tensor:
        """Where ``target`` is known and in range."""
        return (target > 0) & (target >= self.min_depth) & (target <= self.max_depth)


@MODELS.register_module()
class DepthObjective(MetricDepthObjective):
    """Depth in metres through a bounded output, trained with the scale-invariant logarithmic loss.

    ``depth = min_depth + (max_depth - min_depth) · sigmoid(raw)``: near zero this is exponential,
    so that the loss in log depth has a gradient of about one, and the range is kept by
    construction.

    The loss of an image is ``sqrt(mean(d²) - silog_lambda · mean(d)²)`` with
    ``d = log(prediction) - log(target)`` over its valid pixels (Eigen, Puhrsch, Fergus 2014, eq. 4,
    under a root as in BTS and AdaBins); ``silog_lambda`` 0 is the plain log RMSE, 1 ignores the
    scale of the image, and the paper's 0.5 is in between. Images without valid pixels do not count.

    Args:
        min_depth, max_depth: range of the output, metres, 0 < min_depth < max_depth.
        silog_lambda: λ of the paper, in [0, 1].
    """

    loss_name = "loss_silog"

    def __init__(self, min_depth: float, max_depth: float, silog_lambda: float = 0.5) -> None:
        super().__init__(min_depth, max_depth)
        self.silog_lambda = silog_lambda
        # Where training begins: raw 0 is the middle of the range, but rooms and streets have most
        # of their depth near a quarter of it, and a bias is slow to learn when batch normalisation
        # leaves the other inputs without a mean.
        self.first_raw = (-math.log(3),)  # sigmoid = 1/4

    def averaged(self, raw: Tensor) -> Tensor:
        return raw.float().sigmoid()

    def from_average(self, values: Tensor) -> Tensor:
        return values.logit(eps=1e-6)

    def decode(self, raw: Tensor) -> Tensor:
        """(N, 1, H, W) raw outputs → (N, 1, H, W) metres in [min_depth, max_depth]."""
        return self.min_depth + (self.max_depth - self.min_depth) * raw.sigmoid()

    def forward(self, raw: Tensor, target: Tensor) -> Tensor:
        """Mean loss over images of ``raw`` against ``target``, both (N, 1, H, W); the target in
        metres (0 = unknown); a scalar."""
        valid = self.valid(target)
        difference = torch.where(
            valid, self.decode(raw).log() - torch.where(valid, target, 1.0).log(), 0.0
        )
        count = valid.sum(dim=(1, 2, 3))
        mean = difference.sum(dim=(1, 2, 3)) / count.clamp(min=1)
        mean_square = difference.square().sum(dim=(1, 2, 3)) / count.clamp(min=1)
        # the root's slope is infinite at zero: a perfect image must not give NaN gradients
        losses = (mean_square - self.silog_lambda * mean.square()).clamp(min=1e-8).sqrt()
        return (losses * (count > 0)).sum() / (count > 0).sum().clamp(min=1)


@MODELS.register_module()
class DepthBins(MetricDepthObjective):
    """Depth in metres as the mean of uniform bins, trained with SigLoss: the depth heads of DINOv2,
    DINOv3 and probe3d.

    ``depth = Σ p_k · b_k`` with ``b`` from min_depth to max_depth in equal steps and
    ``p_k = (relu(raw_k) + 0.1) / Σ_j (relu(raw_j) + 0.1)`` (the "linear" normalisation of AdaBins'
    code, Bhat, Alhashim, Wonka, CVPR 2021). The loss is ``sqrt(var(g) + 0.15 · mean(g)²)`` with
    ``g = log(prediction + ε) - log(target + ε)``, ε = 1 mm, over all valid pixels of the batch
    (AdaBins' eq. 2 with λ = 0.85; the variance is the unbiased one).

    Args:
        min_depth, max_depth: of the first and the last bin, metres, 0 < min_depth < max_depth.
        bins: how many.
        warmup: iterations at the start without the variance.
    """

    loss_name = "loss_sig"
    EPS = 1e-3  # metres

    def __init__(
        self, min_depth: float, max_depth: float, bins: int = 256, warmup: int = 0
    ) -> None:
        super().__init__(min_depth, max_depth)
        self.warmup = warmup
        self.channels, self.first_raw = bins, (0.0,) * bins

    def read(self, raw: Tensor) -> Tensor:
        """(N, bins, h, w) raw outputs → (N, 1, h, w) metres."""
        share = raw.float().relu() + 0.1
        bins = torch.linspace(self.min_depth, self.max_depth, self.channels, device=raw.device)
        return torch.einsum("nkhw,k->nhw", share, bins)[:, None] / share.sum(dim=1, keepdim=True)

    def forward(self, raw: Tensor, target: Tensor) -> Tensor:
        """Loss of ``raw`` against ``target`` (both (N, 1, H, W) metres; 0 = unknown); a scalar, 0
        where less than two pixels are valid."""
        valid = self.valid(target)
        if valid.sum() < 2:
            return raw.sum() * 0.0
        g = (raw[valid] + self.EPS).log() - (target[valid] + self.EPS).log()
        variance = g.var() * (self.iterations >= self.warmup) if self.warmup else g.var()
        return (variance + 0.15 * g.mean().square()).clamp(min=1e-8).sqrt()


@MODELS.register_module()
class Probe3dDepth(DepthBins):
    """``DepthBins`` with probe3d's loss: ten times SigLoss (of the biased variance), and half of
    the absolute differences of the log error between images two apart in the batch, summed over the
    complete batch and over every second, every fourth and every sixth image of it.

    Its code calls this the gradient, and means neighbouring pixels; its indices are of the batch.
    """

    def forward(self, raw: Tensor, target: Tensor) -> Tensor:
        valid = self.valid(target)
        prediction, depth = (torch.where(valid, each, 1.0) for each in (raw, target))
        g = (prediction + self.EPS).log() - (depth + self.EPS).log()
        count = valid.sum().clamp(min=1)
        square = g.square().sum() / count - 0.85 * (g.sum() / count).square()
        loss = 10 * square.clamp(min=1e-8).sqrt()
        for step in (1, 2, 4, 6):
            error, counted = g[::step], valid[::step]
            difference = (error[:-2] - error[2:]).abs() * (counted[:-2] & counted[2:])
            loss = loss + 0.5 * difference.sum() / counted.sum().clamp(min=1)
        return loss


@METRICS.register_module()
class DepthScores(TaskScores):
    """The means over images of ``depth_scores``, as mmseg and most papers on NYU-v2 report them.

    Scored are pixels with min_depth < ground truth < max_depth inside the crop; images without any
    are left out, with a note.

    Args:
        min_depth, max_depth: valid range of the ground truth, metres.
        crop: see ``cropped``.
        cut: metres that ground truth and predictions beyond them count as.
        several_sizes: the crop ends where a smaller map does.
    """

    def __init__(
        self,
        min_depth: float,
        max_depth: float,
        crop: Sequence[Any] | None = None,
        cut: float | None = None,
        several_sizes: bool = False,
    ) -> None:
        super().__init__("depth")
        self.min_depth, self.max_depth, self.crop, self.cut = min_depth, max_depth, crop, cut
        self.several_sizes = several_sizes

    def score(self, prediction: Tensor, target: Tensor) -> dict[str, Any]:
        crop = self.crop
        if self.several_sizes and crop:
            height, width = target.shape[-2:]
            crop = (crop[0], min(crop[1], height), crop[2], min(crop[3], width))
        prediction, target = (cropped(each[0], crop) for each in (prediction, target))
        if self.cut is not None:
            prediction, target = prediction.clamp(max=self.cut), target.clamp(max=self.cut)
        valid = (target > self.min_depth) & (target < self.max_depth)
        return depth_scores(prediction, target, valid) | {"pixels": valid.sum()}

    def summary(self) -> dict[str, float]:
        note_empty(self)
        return super().summary()
