"""Losses of decode heads: mix-ins that make a segmenter or a regressor of one, whose raw outputs
are read by its ``objective``."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, ClassVar

import probes.runner.bridge  # noqa: F401  before mmseg, which it prepares

# isort: split
import torch
import torch.nn.functional as F
from mmseg.models.decode_heads.decode_head import BaseDecodeHead
from mmseg.models.losses import CrossEntropyLoss
from mmseg.registry import MODELS
from torch import Tensor

from probes.dense.decode_heads.resized_loss import resized_cross_entropy
from probes.dense.objectives import Classes, Objective

Losses = dict[str, Tensor]


def in_fp32(function: Callable[..., Any]) -> Callable[..., Any]:
    """Compute what follows a head in fp32, also where the head itself runs under autocast."""

    @functools.wraps(function)
    def exact(self: Any, raw: Tensor, samples: list[Any]) -> Any:
        with torch.autocast(raw.device.type, enabled=False):
            return function(self, raw.float(), samples)

    return exact


class Segmentation(BaseDecodeHead):
    """Mix-in before an mmseg decode head: the plain cross-entropy at the label's resolution, and
    the percentage of right pixels, by ``resized_loss``. Any other loss is computed by
    mmseg."""

    objective: ClassVar[Objective] = Classes()

    def __init__(self, loss_images: int | None = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.loss_images = loss_images

    @in_fp32
    def loss_by_feat(self, logits: Tensor, samples: list[Any]) -> Losses:
        loss = self.loss_decode
        if self.sampler is not None or not _is_plain(loss):
            return super().loss_by_feat(logits, samples)
        labels = torch.cat([sample.gt_sem_seg.data for sample in samples])
        images = self.loss_images or len(labels)
        options = self.ignore_index, self.align_corners, not loss.avg_non_ignore
        groups = [
            torch.stack(resized_cross_entropy(part, target, *options))
            for part, target in zip(logits.split(images), labels.split(images), strict=True)
        ]
        means, right, scored = torch.stack(groups).T
        return {
            loss.loss_name: loss.loss_weight * means.mean(),
            "acc_seg": 100 * right.sum() / scored.sum().clamp(min=1),
        }

    @in_fp32
    def predict_by_feat(self, logits: Tensor, metas: list[dict[str, Any]]) -> Tensor:
        return super().predict_by_feat(logits, metas)


def _is_plain(loss: Any) -> bool:
    """Whether a loss is the mean cross-entropy over the pixels, with or without those that are
    ignored."""
    return (
        type(loss) is CrossEntropyLoss
        and not loss.use_sigmoid
        and not loss.use_mask
        and loss.class_weight is None
        and loss.reduction == "mean"
    )


class Regression(BaseDecodeHead):
    """Mix-in before an mmseg decode head: an objective in ``loss_decode`` replaces the loss over
    classes."""

    def __init__(
        self, loss_decode: dict[str, Any], loss_images: int | None = None, **kwargs: Any
    ) -> None:
        objective = MODELS.build(loss_decode)
        # mmseg warns about a single output channel without a threshold, which only binary
        # segmentation uses
        options = {"num_classes": objective.channels, "threshold": 0.0, **kwargs}
        super().__init__(loss_decode=loss_decode, **options)
        self.out_channels = objective.read(torch.zeros(1, objective.channels, 1, 1)).shape[1]
        self.loss_images = loss_images

    @property
    def objective(self) -> Objective:
        return self.loss_decode

    def init_weights(self) -> None:
        """mmseg's initialisation, but for the bias of the last convolution."""
        super().init_weights()
        with torch.no_grad():
            self.conv_seg.bias.copy_(torch.tensor(self.loss_decode.first_raw))

    def forward(self, inputs: tuple[Tensor, ...]) -> Tensor:
        """Maps of the backbone → what the objective reads from the head's outputs, (N,
        out_channels, h, w)."""
        return self.loss_decode.read(super().forward(inputs))

    @in_fp32
    def loss_by_feat(self, raw: Tensor, samples: list[Any]) -> Losses:
        objective = self.loss_decode
        target = torch.stack([sample.get(f"gt_{objective.field}").data for sample in samples])
        raw = F.interpolate(
            raw, target.shape[2:], mode="bilinear", align_corners=self.align_corners
        )
        if not self.loss_images:
            loss = objective(raw, target)
        else:  # the images of a group as one tall image
            groups = [
                [part.transpose(0, 1).flatten(1, 2)[None] for part in each.split(self.loss_images)]
                for each in (raw, target)
            ]
            loss = torch.stack([objective(*pair) for pair in zip(*groups, strict=True)]).mean()
        objective.iterations += 1
        return {objective.loss_name: loss}
