"""An expert of your own, which labels images with depth: here the lower, the nearer. Try it:

python ground-plane.py      # writes its weights to the folder ground-plane
python -m benchmark labels predict --plugin ground-plane.py --pairs 'DIR/{00000..00009}.tar' \\
    --experts ground-plane=ground-plane --out labels
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from backbones.cliptex.experts.base import EXPERTS, Expert


@dataclass(frozen=True)
class Settings:
    """``horizon``: its row, as a share of the height. Settings are part of the labels' identity."""

    horizon: float = 0.4


class GroundPlane(Expert):
    name = "ground-plane"
    about = "one line for `list experts`"
    # seg: (N, H, W) class numbers; depth: (N, H, W) inverse depth, any scale; normal: (N, 3, H, W)
    # unit vectors, x right, y up, z towards the camera; or a task of your own
    task = "depth"
    settings_type = Settings

    def __init__(self, settings: Settings, classes: tuple[str, ...] = ()) -> None:
        super().__init__(settings, classes)
        self.slope = nn.Parameter(torch.ones(()))  # stands for your network

    # Override ``load`` to read a checkpoint of its authors, and ``loss`` for `experts train`.

    @torch.no_grad()
    def predict(self, images: Tensor) -> dict[str, np.ndarray]:
        # (N, 3, H, W) uint8 RGB in; labels of the same H and W out, by the name of the task
        count, _, height, width = images.shape
        rows = torch.linspace(0, 1, height, device=self.device)
        inverse_depth = self.slope * (rows - self.settings.horizon).clamp(min=0)
        return {"depth": inverse_depth[None, :, None].expand(count, -1, width).cpu().numpy()}


EXPERTS.register("ground-plane", GroundPlane)

if __name__ == "__main__":
    GroundPlane(Settings()).save("ground-plane")
