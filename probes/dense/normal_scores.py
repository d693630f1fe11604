"""Surface normals: objective and scores. What needs no torch is in
``probes.dense.normals``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from mmengine.registry import MODELS
from mmseg.registry import METRICS
from torch import Tensor

from backbones.cliptex.tasks import angmf
from cliptex_common.dense_maps.scores import angles
from probes.dense.metrics import TaskScores, cropped, note_empty
from probes.dense.objectives import TaskObjective


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


@METRICS.register_module()
class NormalScores(TaskScores):
    """Angular errors over all valid pixels of the set together, as Fouhey et al. 2013 and later
    papers report them.

    ``normal_mean`` and ``normal_median`` in degrees; ``normal_11.25``, ``normal_22.5``,
    ``normal_30``: percent of pixels whose error is below. Means over images of each one's own:
    ``normal_image_rmse`` and ``normal_image_11.25`` …, as probe3d (El Banani et al. 2024) reports
    them, and this suite's own ``normal_image_mean`` of its mean error. Valid are pixels whose
    ground truth is not (0, 0, 0).

    The median is that of all pixels, counted in bins of 180° / 2²² = 0.00004°, which is about what
    float32 predictions resolve: right within half a bin, in 16 MB for a set of any size, where
    NYU's 654 images have 650 MB of errors. ``per_image`` has ``normal_mean`` and shares of each
    image and ``pixels``: weighted by them they give back the metrics; the median of any draw of
    images follows from ``error_histogram``, (images, 1800) pixels by error in bins of 0.1°.

    Args:
        crop: see ``cropped``.
    """

    BINS = 2**22
    COARSE = 1800  # bins of an image's own histogram
    WITHIN = (11.25, 22.5, 30)

    def __init__(self, crop: Sequence[Any] | None = None) -> None:
        super().__init__("normals")
        self.crop = crop

    def score(self, prediction: Tensor, target: Tensor) -> dict[str, Any]:
        prediction, target = (cropped(each, self.crop) for each in (prediction, target))
        valid = target.any(dim=0).flatten()
        error, pixels = angles(prediction, target).flatten(), valid.sum().double()
        if self.pooled is None:
            self.pooled = torch.zeros(self.BINS, dtype=torch.int32, device=error.device)
        counted = valid.int()
        self.pooled.index_add_(0, _bin(error, self.BINS), counted)
        coarse = torch.zeros(self.COARSE, dtype=torch.int32, device=error.device)
        error = torch.where(valid, error, 0.0)
        return {
            "normal_mean": error.sum() / pixels,
            "image_rmse": (error.square().sum() / pixels).sqrt(),
            **{
                f"normal_{limit:g}": 100 * ((error < limit) & valid).sum() / pixels
                for limit in self.WITHIN
            },
            "pixels": pixels.long(),
            "error_histogram": coarse.index_add_(0, _bin(error, self.COARSE), counted),
        }

    def summary(self) -> dict[str, float]:
        note_empty(self)
        assert self.pooled is not None
        return {**super().summary(), "normal_median": histogram_median(self.pooled.cpu().numpy())}


def histogram_median(counts: np.ndarray) -> float:
    """Median of errors counted in bins of equal width over [0°, 180°], as the middle of its bin (of
    an even number, between those of the middle two); NaN when all are empty."""
    total, so_far = int(counts.sum()), np.cumsum(counts, dtype=np.int64)
    if not total:
        return float("nan")
    bins = np.searchsorted(so_far, [(total - 1) // 2 + 1, total // 2 + 1])
    return float((bins.mean() + 0.5) * 180 / len(counts))


def _bin(error: Tensor, bins: int) -> Tensor:
    """Which of ``bins`` of equal width over [0°, 180°] each error is in (NaN, of a pixel without
    ground truth, in the first)."""
    return (error.nan_to_num() * (bins / 180)).long().clamp(0, bins - 1)
