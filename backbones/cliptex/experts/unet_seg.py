"""``unet``: a plain semantic segmenter, for where instances are not needed or Mask R-CNN is too slow to train."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from backbones.cliptex.data.augment import IGNORE as UNLABELLED
from backbones.cliptex.experts.base import Expert, hard_classes, resize
from backbones.cliptex.experts.data import IGNORE, ExpertData
from backbones.cliptex.experts.fit import FitSettings, fit
from backbones.cliptex.experts.nll_angmf import scaled
from backbones.cliptex.experts.unet import UNet
from backbones.cliptex.protocols import Progress, RunLog


@dataclass(frozen=True)
class UNetSegSettings(FitSettings):
    """Attributes (besides those of ``FitSettings``): ``size``: side of its square input in pixels; ``score_threshold``: pixels
    whose likeliest class has a lower probability are ignored; ``balance``: 0 counts every pixel alike, 1 every class, as
    often as it is seen to the power of -balance; the rest as in ``UNet``."""

    size: int = 384
    encoder: str = "tf_efficientnet_lite0"
    pretrained: bool = True
    width: int = 32
    stride: int = 2
    score_threshold: float = 0.5
    balance: float = 0.0


class UNetSeg(Expert):
    """Semantic segmentation by a U-Net: background and the classes of a COCO file.

    WHERE: a folder that ``experts train`` wrote.
    """

    name = "unet"
    task = "seg"
    settings_type = UNetSegSettings

    def __init__(self, settings: UNetSegSettings, classes: tuple[str, ...], *, fresh: bool = False) -> None:
        super().__init__(settings, classes)
        self.net = UNet(
            settings.encoder,
            pretrained=settings.pretrained and fresh,
            channels=len(classes),
            width=settings.width,
            stride=settings.stride,
        )

    @classmethod
    def create(cls, settings: UNetSegSettings, classes: tuple[str, ...]) -> Self:
        return cls(settings, classes, fresh=True)

    @torch.no_grad()
    def predict(self, images: Tensor) -> dict[str, np.ndarray]:
        size = images.shape[-2:]
        inner = resize(images.to(self.device).float() / 255, scaled(size, self.settings.size))
        scores = resize(self.net(inner), size).softmax(1)
        return {"seg": hard_classes(scores, self.settings.score_threshold, self.ignore_index)}

    def train_on(
        self, data: ExpertData, *, seed: int, device: torch.device, log: RunLog, progress: Progress, state: Path | None
    ) -> None:
        weight = _class_weights(data.target, len(self.classes), self.settings.balance).to(device)

        def loss(images: Tensor, target: Tensor) -> Tensor:
            return F.cross_entropy(self.net(images).float(), target, weight=weight, ignore_index=UNLABELLED)

        self.spent = fit(
            self, loss, data, self.settings, seed=seed, device=device, log=log, progress=progress, state=state
        )


def _class_weights(target: Tensor, classes: int, balance: float) -> Tensor:
    """(classes,) weights whose mean over the labelled pixels is 1; most pixels are background."""
    share = torch.bincount(target[target != IGNORE].long(), minlength=classes).float()
    share /= share.sum()
    weight = share.clamp(min=1e-6) ** -balance
    return weight / (weight * share).sum()
