"""``unet``: a plain semantic segmenter, for where instances are not needed or Mask R-CNN is too slow to train."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from backbones.cliptex.data.augment import IGNORE as UNLABELLED
from backbones.cliptex.experts.base import hard_classes
from backbones.cliptex.experts.data import ExpertData
from backbones.cliptex.experts.fit import FitRun, fit
from backbones.cliptex.experts.unet import UNetExpert, UNetSettings


@dataclass(frozen=True)
class UNetSegSettings(UNetSettings):
    """Attributes (besides those of ``UNetSettings``): ``score_threshold``: pixels whose likeliest class has a lower
    probability are ignored; ``balance``: 0 counts every pixel alike, 1 every class, as often as it is seen to the power of
    -balance."""

    score_threshold: float = 0.5
    balance: float = 0.0


class UNetSeg(UNetExpert):
    """Semantic segmentation by a U-Net: background and the classes of a COCO file."""

    name = "unet"
    task = "seg"
    settings_type = UNetSegSettings
    settings: UNetSegSettings

    @torch.no_grad()
    def predict(self, images: Tensor) -> dict[str, np.ndarray]:
        scores = self.outputs(images).softmax(1)
        return {"seg": hard_classes(scores, self.settings.score_threshold, self.ignore_index)}

    def train_on(self, data: ExpertData, run: FitRun) -> None:
        weight = _class_weights(data, self.settings.balance).to(run.device)

        def loss(images: Tensor, target: Tensor) -> Tensor:
            return F.cross_entropy(self.net(images).float(), target, weight=weight, ignore_index=UNLABELLED)

        self.spent = fit(self, loss, data, self.settings, run)


def _class_weights(data: ExpertData, balance: float) -> Tensor:
    """(classes,) weights whose mean over the labelled pixels is 1; most pixels are background."""
    share = data.pixels[: len(data.classes)].float()
    share /= share.sum()
    weight = share.clamp(min=1e-6) ** -balance
    return weight / (weight * share).sum()
