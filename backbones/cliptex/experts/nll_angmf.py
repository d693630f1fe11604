"""``nll-angmf``: surface normals with their uncertainty, trained by the likelihood of the AngMF
distribution."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from timm.data import IMAGENET_DEFAULT_MEAN as MEAN
from timm.data import IMAGENET_DEFAULT_STD as STD
from torch import Tensor, nn
from torch.nn import functional as F

from backbones.checkpoint import fit_state, load_checkpoint
from backbones.cliptex.experts import angmf
from backbones.cliptex.experts.base import resize
from backbones.cliptex.experts.data import ExpertData
from backbones.cliptex.experts.fit import FitRun, fit
from backbones.cliptex.experts.uncertainty_guided import STRIDE, Norm, UncertaintyGuided
from backbones.cliptex.experts.unet import UNetExpert, UNetSettings, scaled

AT_ONCE = 8  # images: at 480 × 640 px the last MLP takes 0.5 GB each


class NllAngMF(UNetExpert):
    """(μ, κ) of each pixel (Bae et al., ICCV 2021): a U-Net without that paper's refinement, which
    can be trained here, or the authors' own network.

    WHERE: a folder that ``experts train`` wrote, or a checkpoint of the authors (``scannet.pt``,
        ``nyu.pt``).

    The authors' normals have x left, y up, z towards the camera; ``predict`` negates x, so that
    both give ``augment.AXES``. (Their repository does not say so; its issue 13 found it by trial,
    and their DSINE, which reads the same ground truth of NYU-v2 and ScanNet, says it: x right, y
    down, z to the front, of normals that point into the surface.)
    """

    name = "nll-angmf"
    task = "normal"

    @classmethod
    def published(cls, norm: Norm, size: int = 480) -> Self:
        """The authors' network with random weights; theirs are for images of 480 × 640."""
        settings = UNetSettings(size=size, encoder="tf_efficientnet_b5", pretrained=False)
        return cls(settings, net=UncertaintyGuided(norm))

    @classmethod
    def build(cls, config: Mapping[str, Any]) -> Self:
        if "norm" not in config:
            return super().build(config)
        return cls.published(config["norm"], config["settings"]["size"])

    @classmethod
    def load(cls, source: str, device: torch.device | str = "cpu") -> Self:
        if not Path(source).is_file():
            return super().load(source, device)
        state = load_checkpoint(source).state
        norm: Norm = "BN" if "decoder.up1._net.1.running_mean" in state else "GN"
        expert = cls.published(norm)
        fit_state(
            expert.net,
            state,
            path=Path(source),
            architecture=f"the authors' NLL-AngMF network with {norm}",
        )
        expert.source = source
        return expert.freeze(device)

    def identity(self) -> dict[str, Any]:
        return super().identity() | (
            {"norm": self.net.norm} if isinstance(self.net, UncertaintyGuided) else {}
        )

    def trunk(self) -> Iterable[nn.Module]:
        return self.net.trunk() if isinstance(self.net, UncertaintyGuided) else super().trunk()

    @torch.no_grad()
    def predict(self, images: Tensor) -> dict[str, np.ndarray]:
        refined = isinstance(self.net, UncertaintyGuided)
        mean, kappa = self._refined(images) if refined else angmf.split(self.outputs(images))
        return {"normal": mean.cpu().numpy(), "confidence": kappa.cpu().numpy()}

    def _refined(self, images: Tensor) -> tuple[Tensor, Tensor]:
        size, device = images.shape[-2:], self.device
        inner = [max(1, round(side / STRIDE)) * STRIDE for side in scaled(size, self.settings.size)]
        mean, std, mirror = (
            torch.tensor(values, device=device).view(3, 1, 1) for values in (MEAN, STD, (-1, 1, 1))
        )
        parts = []
        for some in images.split(AT_ONCE):
            normal, kappa = self.net((resize(some.to(device).float() / 255, inner) - mean) / std)
            parts.append(
                (
                    F.normalize(resize(normal * mirror, size), dim=1),
                    resize(kappa[:, None], size)[:, 0],
                )
            )
        normals, kappas = zip(*parts, strict=True)
        return torch.cat(normals), torch.cat(kappas)

    def train_on(self, data: ExpertData, run: FitRun) -> None:
        def loss(images: Tensor, normal: Tensor) -> Tensor:
            mean, kappa = angmf.split(self.net(images).float())
            known = normal.square().sum(1) > 0.25
            return (angmf.nll(mean, kappa, normal) * known).sum() / known.sum().clamp(min=1)

        self.spent = fit(self, loss, data, self.settings, run)
