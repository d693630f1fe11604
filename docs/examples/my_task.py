"""A dense task of your own for CLIPTeX: edges of objects. One file; the registration is an entry
point."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from backbones.cliptex.data.augment import Geometry, warp_depth
from backbones.cliptex.tasks.base import Summed, Task, grey


class Edges(Task):
    """A label is (H, W) float32 in [0, 1], NaN where unknown."""

    # its λ is lambda_edges, its files are KEY.edges.png, its expert predicts "edges"
    name = "edges"
    about = "edges of objects"
    quantisation = "254 steps"  # what encode loses, in words
    missing = torch.full((1, 1), float("nan"))

    # --- learning: one output channel unless ``channels`` says otherwise

    def activate(self, output: Tensor) -> Tensor:
        return output.squeeze(1)

    def loss(self, prediction: Tensor, target: Tensor) -> Summed:
        # a sum and a count, not a mean: batches may be split over processes
        labelled = torch.isfinite(target)
        each = F.binary_cross_entropy_with_logits(
            prediction.float(), torch.nan_to_num(target), reduction="none"
        )
        return torch.where(labelled, each, 0.0).sum(), self.count(target)

    def count(self, target: Tensor) -> Tensor:
        return torch.isfinite(target).sum().float()

    def warp(self, maps: Sequence[Tensor], geometry: Geometry, size: int) -> Tensor:
        return warp_depth(maps, geometry, size)  # crops and flips scalar maps; NaN stays unknown

    # --- labels: written once, stored in tars

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

    # --- evaluated and drawn

    def score(
        self, outputs: Mapping[str, np.ndarray], target: np.ndarray, classes: int = 0
    ) -> dict[str, float]:
        return {"edge_error": float(np.nanmean(np.abs(outputs["edges"] - target)))}

    def picture(self, label: np.ndarray, image: np.ndarray) -> np.ndarray:
        return grey(label)


TASK = Edges()
