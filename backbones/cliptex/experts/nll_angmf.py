"""``nll-angmf``: surface normals with their uncertainty, trained by the likelihood of the AngMF distribution."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np
import torch
from torch import Tensor

from backbones.cliptex.experts import angmf
from backbones.cliptex.experts.base import Expert, resize
from backbones.cliptex.experts.data import ExpertData
from backbones.cliptex.experts.fit import FitSettings, fit
from backbones.cliptex.experts.unet import UNet
from backbones.cliptex.protocols import Progress, RunLog

LONGEST = 8


@dataclass(frozen=True)
class NllAngMFSettings(FitSettings):
    """``FitSettings`` and: ``size``, side of its square input in pixels; the others as in ``UNet``."""

    size: int = 384
    encoder: str = "tf_efficientnet_lite0"
    pretrained: bool = True
    width: int = 32
    stride: int = 2


class NllAngMF(Expert):
    """Encoder–decoder that predicts (μ, κ) at each pixel (Bae et al., ICCV 2021), without that paper's refinement.

    WHERE: a folder that ``experts train`` wrote.
    """

    name = "nll-angmf"
    task = "normal"
    settings_type = NllAngMFSettings

    def __init__(self, settings: NllAngMFSettings, classes: tuple[str, ...] = (), *, fresh: bool = False) -> None:
        super().__init__(settings)
        self.net = UNet(
            settings.encoder,
            pretrained=settings.pretrained and fresh,
            channels=4,
            width=settings.width,
            stride=settings.stride,
        )

    @classmethod
    def create(cls, settings: NllAngMFSettings, classes: tuple[str, ...]) -> Self:
        return cls(settings, classes, fresh=True)

    @torch.no_grad()
    def predict(self, images: Tensor) -> dict[str, np.ndarray]:
        size = images.shape[-2:]
        inner = resize(images.to(self.device).float() / 255, scaled(size, self.settings.size))
        outputs = resize(self.net(inner), size)
        mean, kappa = angmf.split(outputs)
        return {"normal": mean.cpu().numpy(), "confidence": kappa.cpu().numpy()}

    def train_on(
        self, data: ExpertData, *, seed: int, device: torch.device, log: RunLog, progress: Progress, state: Path | None
    ) -> None:
        def loss(images: Tensor, normal: Tensor) -> Tensor:
            mean, kappa = angmf.split(self.net(images).float())
            known = normal.square().sum(1) > 0.25
            return (angmf.nll(mean, kappa, normal) * known).sum() / known.sum().clamp(min=1)

        self.spent = fit(
            self, loss, data, self.settings, seed=seed, device=device, log=log, progress=progress, state=state
        )


def scaled(size: tuple[int, ...], side: int) -> tuple[int, int]:
    """(H, W) brought to ``side`` on the short side, its aspect kept: normals keep their meaning. Banners are squeezed to
    ``LONGEST`` times the short side: a picture of 1 × 1,000 pixels must not become one of 384 × 384,000."""
    scale, longest = side / min(size), LONGEST * side
    return min(longest, max(1, round(size[0] * scale))), min(longest, max(1, round(size[1] * scale)))
