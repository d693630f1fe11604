"""``nll-angmf``: surface normals and their uncertainty, by the authors' network (Bae et al., ICCV
2021)."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Self

import numpy as np
import torch
from timm.data import IMAGENET_DEFAULT_MEAN as MEAN
from timm.data import IMAGENET_DEFAULT_STD as STD
from torch import Tensor, nn
from torch.nn import functional as F

from backbones.checkpoint import fit_state, load_checkpoint
from backbones.cliptex.experts.base import Expert, FitSettings, resize
from backbones.cliptex.experts.uncertainty_guided import STRIDE, Norm, UncertaintyGuided
from backbones.cliptex.experts.unet import scaled
from backbones.cliptex.training.encoders import Normalise

AT_ONCE = 8  # images: at 480 × 640 px the last MLP takes 0.5 GB each


class NllAngMF(Expert):
    """The authors' own network with their weights.

    Their normals have x left, y up, z towards the camera; ``predict`` negates x to give
    ``dense_maps.geometry.AXES``. (Their repository does not say so; its issue 13 found it by trial,
    and their DSINE, which reads the same ground truth of NYU-v2 and ScanNet, says it: x right, y
    down, z to the front, of normals that point into the surface.)
    """

    name = "nll-angmf"
    task = "normal"

    def __init__(self, norm: Norm, size: int = 480) -> None:
        super().__init__(FitSettings(size=size))  # their weights are for images of 480 × 640
        self.net = UncertaintyGuided(norm)
        self.normalise = Normalise(MEAN, STD)

    @classmethod
    def load(cls, source: str, device: torch.device | str = "cpu") -> Self:
        """A checkpoint of the authors (``scannet.pt``, ``nyu.pt``)."""
        checkpoint = load_checkpoint(source)
        norm: Norm = "BN" if "decoder.up1._net.1.running_mean" in checkpoint.state else "GN"
        expert = cls(norm)
        fit_state(expert.net, checkpoint, f"the authors' NLL-AngMF network with {norm}")
        expert.source = source
        return expert.freeze(device)

    def identity(self) -> dict[str, Any]:
        settings = {"size": self.settings.size, "norm": self.net.norm}
        return {**super().identity(), "settings": settings}

    def trunk(self) -> Iterable[nn.Module]:
        return self.net.trunk()

    @torch.no_grad()
    def predict(self, images: Tensor) -> dict[str, np.ndarray]:
        size, device = images.shape[-2:], self.device
        inner = [max(1, round(side / STRIDE)) * STRIDE for side in scaled(size, self.settings.size)]
        normals, kappas = [], []
        for chunk in images.split(AT_ONCE):
            pixels = resize(chunk.to(device).float() / 255, inner)
            normal, kappa = self.net(self.normalise(pixels))
            normal = torch.cat([-normal[:, :1], normal[:, 1:]], dim=1)
            normals.append(F.normalize(resize(normal, size), dim=1).cpu().numpy())
            kappas.append(resize(kappa[:, None], size)[:, 0].cpu().numpy())
        return {"normal": np.concatenate(normals), "confidence": np.concatenate(kappas)}
