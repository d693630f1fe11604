"""An expert of the task of ``python -m benchmark new task edges``: edges are steps of brightness. A
plugin, to be given beside that of the task."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from backbones.cliptex.experts import EXPERTS, Expert


@dataclass(frozen=True)
class EdgeSettings:
    """``gain``: how steep a step of brightness is a sure edge."""

    gain: float = 4.0


class EdgeExpert(Expert):
    """Steps of brightness to the right and down."""

    name = "edge-finder"  # as --experts takes it
    task = "edges"  # what it labels: seg, depth, normal, or a task of your own
    settings_type = EdgeSettings

    # Weights would be parameters of this module; ``save`` and ``load`` of the base class store them
    # as safetensors.
    def __init__(self, settings: EdgeSettings, classes: tuple[str, ...] = ()) -> None:
        super().__init__(settings)
        self.register_buffer("grey", torch.tensor([0.3, 0.6, 0.1]).view(1, 3, 1, 1))

    @property  # needed only by an expert without parameters
    def device(self) -> torch.device:
        return self.grey.device

    @torch.no_grad()
    def predict(self, images: Tensor) -> dict[str, np.ndarray]:
        # (N, 3, H, W) uint8 in, (N, H, W) float32 out, by the name of the task, at the images' own
        # resolution
        grey = (images.to(self.device).float() / 255 * self.grey).sum(1)
        bright = F.pad(grey, (0, 1, 0, 1), mode="replicate")
        step = (bright[:, 1:, :-1] - bright[:, :-1, :-1]).abs() + (
            bright[:, :-1, 1:] - bright[:, :-1, :-1]
        ).abs()
        return {"edges": (self.settings.gain * step).clamp(0, 1).cpu().numpy()}


EXPERTS.register("edge-finder", EdgeExpert)
