"""A fourth task, as another package would bring it: where things end, from an expert that looks for steps of brightness."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from backbones.cliptex.data.augment import Geometry, warp_depth
from backbones.cliptex.experts import Expert
from backbones.cliptex.tasks.base import Summed, Task, grey


class Edges(Task):
    """A label is (H, W) float32 in [0, 1], NaN where nothing is known."""

    name = "edges"
    about = "where things end"
    quantisation = "254 steps"
    missing = torch.full((1, 1), float("nan"))

    def activate(self, output: Tensor) -> Tensor:
        return output.squeeze(1)

    def loss(self, prediction: Tensor, target: Tensor) -> Summed:
        known = torch.isfinite(target)
        each = F.binary_cross_entropy_with_logits(prediction.float(), torch.nan_to_num(target), reduction="none")
        return torch.where(known, each, 0.0).sum(), self.count(target)

    def count(self, target: Tensor) -> Tensor:
        return torch.isfinite(target).sum().float()

    def warp(self, maps: Sequence[Tensor], geometry: Geometry, size: int) -> Tensor:
        return warp_depth(maps, geometry, size)

    def read(self, path: Path) -> np.ndarray:
        return self.decode(path.read_bytes())

    def encode(self, label: np.ndarray) -> bytes:
        file = io.BytesIO()
        code = np.where(np.isfinite(label), 1 + np.rint(np.nan_to_num(label) * 254), 0)
        Image.fromarray(code.astype(np.uint8)).save(file, "PNG")
        return file.getvalue()

    def decode(self, data: bytes) -> np.ndarray:
        code = np.array(Image.open(io.BytesIO(data)), np.float32)
        return np.where(code > 0, (code - 1) / 254, np.float32(np.nan))

    def to_tensor(self, label: np.ndarray) -> Tensor:
        return torch.from_numpy(label.astype(np.float32))

    def score(self, outputs: Mapping[str, np.ndarray], truth: np.ndarray, classes: int = 0) -> dict[str, float]:
        return {"edge_error": float(np.nanmean(np.abs(outputs["edges"] - truth)))}

    def picture(self, label: np.ndarray, image: np.ndarray) -> np.ndarray:
        return grey(label)


TASK = Edges()


@dataclass(frozen=True)
class EdgeSettings:
    """``gain``: how steep a step of brightness is a sure edge."""

    gain: float = 4.0


class EdgeExpert(Expert):
    """TrainStep of brightness to the right and down."""

    name = "edge-finder"
    task = "edges"
    settings_type = EdgeSettings
    weight: ClassVar = None

    def __init__(self, settings: EdgeSettings, classes: tuple[str, ...] = ()) -> None:
        super().__init__(settings)
        self.register_buffer("grey", torch.tensor([0.3, 0.6, 0.1]).view(1, 3, 1, 1))

    @property
    def device(self) -> torch.device:
        return self.grey.device

    @torch.no_grad()
    def predict(self, images: Tensor) -> dict[str, np.ndarray]:
        bright = F.pad((images.float() / 255 * self.grey).sum(1), (0, 1, 0, 1), mode="replicate")
        step = (bright[:, 1:, :-1] - bright[:, :-1, :-1]).abs() + (bright[:, :-1, 1:] - bright[:, :-1, :-1]).abs()
        return {"edges": (self.settings.gain * step).clamp(0, 1).numpy()}
