"""Objectives: what a head's raw outputs mean, and the loss of those that regress.

Raw outputs are resized to the label's resolution first and decoded there; what ``read`` does (the
mean over bins of depth) comes before that, at the resolution of the features.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import ClassVar

import torch
import torch.nn.functional as F
from mmengine.registry import MODELS
from torch import Tensor, nn

from backbones.cliptex.tasks import angmf
from probes.dense.tasks import DENSE_TASKS, DenseTask


@MODELS.register_module()
class TaskObjective(nn.Module):
    """The meaning of a head's raw outputs, and their loss: those of a ``DenseTask``, unless a
    subclass has its own. In this order: ``read`` at the resolution of the features; where it is
    tested, ``mirror``, ``averaged`` and ``from_average``; at the resolution of the ground truth
    ``forward`` or ``decode``; ``at_own_scale`` where the image was resized.

    Args:
        task: the dense task, or its name.

    Attributes:
        field: of a sample: ``gt_FIELD`` is its ground truth, ``pred_FIELD`` its prediction.
        loss_name: key of the loss.
        channels: raw outputs of a pixel.
        first_raw: raw outputs at the start of training: the bias of the last convolution.
        iterations: of training so far.
    """

    loss_name: ClassVar[str] = "loss_task"
    first_raw: tuple[float, ...]
    iterations: Tensor

    def __init__(self, task: str | DenseTask) -> None:
        super().__init__()
        self.task = DENSE_TASKS.find(task) if isinstance(task, str) else task
        self.field, self.channels = self.task.field, self.task.outputs
        self.first_raw = (0.0,) * self.channels
        self.register_buffer("iterations", torch.zeros((), dtype=torch.long))

    def read(self, raw: Tensor) -> Tensor:
        """(N, channels, h, w) raw outputs as they are resized and averaged."""
        return raw

    def mirror(self, raw: Tensor) -> Tensor:
        """``raw`` (as read) of a mirrored image → of the image itself."""
        return _multiplied(raw.flip(-1), self.task.factors(True, (1.0, 1.0)), dim=1)

    def averaged(self, raw: Tensor) -> Tensor:
        """What is averaged where padded sliding crops overlap; ``from_average`` undoes it."""
        return raw

    def from_average(self, values: Tensor) -> Tensor:
        return values

    def decode(self, raw: Tensor) -> Tensor:
        """``raw`` (as read), float32 → predictions, (N, channels of the ground truth, H, W)."""
        prediction = self.task.predict(raw)
        return prediction[:, None] if prediction.ndim == 3 else prediction

    def at_own_scale(self, prediction: Tensor, scale: tuple[float, float]) -> Tensor:
        """A prediction (channels, H, W) of an image that was resized by factors of width and height
        → of the image itself."""
        factors = self.task.factors(False, (1 / scale[0], 1 / scale[1]))
        return _multiplied(prediction, factors, dim=0)

    def forward(self, raw: Tensor, target: Tensor) -> Tensor:
        """Loss of ``raw`` (as read), float32, against ``target`` of the same size; a scalar."""
        total, count = self.task.loss(self.task.activate(raw), target.squeeze(1))
        return total / count.clamp(min=1)


class ClassObjective(TaskObjective):
    """Logits of classes, whose loss is mmseg's."""

    def __init__(self) -> None:
        super().__init__("segmentation")

    def averaged(self, raw: Tensor) -> Tensor:
        return raw.softmax(dim=1)

    def decode(self, raw: Tensor) -> Tensor:
        """(N, classes, H, W) logits → (N, 1, H, W) int64 class indices."""
        return raw.argmax(dim=1, keepdim=True)


def _multiplied(values: Tensor, factors: Sequence[float], dim: int) -> Tensor:
    """The first channels, which are along ``dim``, by a factor each."""
    if all(factor == 1 for factor in factors):
        return values
    first, rest = values.split([len(factors), values.shape[dim] - len(factors)], dim)
    return torch.cat([first * values.new_tensor(factors).view(-1, 1, 1), rest], dim)


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


@MODELS.register_module()
class NormalObjective(TaskObjective):
    """Unit surface normals, trained with the mean angle to the ground truth in radians, or with
    AngMF's likelihood.

    The angle itself, not ``1 - cos``: it is what is scored, and its gradient does not fade as the
    angle gets small. ``arccos`` has an infinite slope at ±1, so the cosine is clamped to ±(1 -
    1e-6); within 0.08° of the ground truth (or of its opposite) the gradient is zero. A pixel is
    valid when its ground truth is not (0, 0, 0).

    Args:
        uncertainty: a fourth output is each pixel's concentration, and the loss the negative
            logarithm of AngMF's density but for a constant (Bae, Budvytis, Cipolla, ICCV 2021); see
            ``backbones.cliptex.tasks.angmf``.
    """

    loss_name = "loss_angle"

    def __init__(self, uncertainty: bool = False) -> None:
        super().__init__("normals")
        self.uncertainty = uncertainty
        self.channels = 4 if uncertainty else 3
        # Training begins with normals that face the camera: most do, more or less. Near (0, 0, 0) a
        # direction is noise, and its gradient turns a pixel without making it any surer, however
        # good the features are.
        self.first_raw = (0.0, 0.0, 1.0, 0.0)[: self.channels]

    def decode(self, raw: Tensor) -> Tensor:
        """(N, 3 or 4, H, W) raw outputs → (N, 3, H, W) unit vectors (x right, y up, z towards the
        camera for our datasets)."""
        return F.normalize(raw[:, :3], dim=1, eps=1e-6)

    def forward(self, raw: Tensor, target: Tensor) -> Tensor:
        """Mean loss over the valid pixels of ``raw`` (N, 3 or 4, H, W) against unit ``target`` (N,
        3, H, W); a scalar."""
        valid = target.square().sum(dim=1) > 0.25
        # the cosine without the unit vectors, which cost four times as much to make; the least
        # length bounds the gradient of a raw output that happens to be (0, 0, 0)
        vector = raw[:, :3]
        cosine = (vector * target).sum(dim=1) * vector.square().sum(dim=1).clamp(min=1e-8).rsqrt()
        loss = cosine.clamp(-1 + 1e-6, 1 - 1e-6).acos()
        if self.uncertainty:
            loss = angmf.nll_of_angle(loss, angmf.concentration(raw[:, 3]))
        return torch.where(valid, loss, 0.0).sum() / valid.sum().clamp(min=1)
