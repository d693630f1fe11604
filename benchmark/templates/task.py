"""A dense task of your own for CLIPTeX, which learns it from the labels of an expert. Try it:

python -m benchmark train --plugin edges.py --recipe cliptex --set experts=edges --init random \\
    --set lambda_edges=0.5 --pairs 'DIR/{00000..00009}.tar' --labels labels --out w.safetensors
"""

import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from backbones.cliptex.data.augment import Geometry, warp_depth
from backbones.cliptex.tasks import TASKS
from backbones.cliptex.tasks.base import Summed, Task, grey


class Edges(Task):  # a label is (H, W) float32 in [0, 1], NaN where unknown
    name = "edges"  # of what its expert predicts, of its files KEY.edges.png and its λ
    about, quantisation = "one line for lists", "254 steps"  # what ``encode`` loses
    missing = torch.full((1, 1), torch.nan)  # the label of an image without one

    def loss(self, prediction: Tensor, target: Tensor) -> Summed:  # sum and count, not the mean
        loss = torch.nn.BCEWithLogitsLoss(reduction="none")
        each = loss(prediction.squeeze(1).float(), torch.nan_to_num(target))
        return torch.where(torch.isfinite(target), each, 0.0).sum(), self.count(target)

    def count(self, target: Tensor) -> Tensor:
        return torch.isfinite(target).sum().float()

    def warp(self, maps: Sequence[Tensor], geometry: Geometry, size: int) -> Tensor:
        return warp_depth(maps, geometry, size)  # crops and flips maps of numbers

    def read(self, path: Path) -> np.ndarray:  # a file of `labels make`
        return self.decode(path.read_bytes())

    def encode(self, label: np.ndarray) -> bytes:
        code = np.where(np.isfinite(label), 1 + np.rint(np.nan_to_num(label) * 254), 0)
        Image.fromarray(code.astype(np.uint8)).save(file := io.BytesIO(), "PNG")
        return file.getvalue()

    def decode(self, data: bytes) -> np.ndarray:
        code = np.array(Image.open(io.BytesIO(data)), np.float32)
        return np.where(code > 0, (code - 1) / 254, np.float32(np.nan))

    def to_tensor(self, label: np.ndarray) -> Tensor:
        return torch.from_numpy(label.astype(np.float32))

    def score(self, outputs, target, classes=0) -> dict[str, float]:  # of an expert's predictions
        return {"edges_error": float(np.nanmean(np.abs(outputs["edges"] - target)))}

    def picture(self, label: np.ndarray, image: np.ndarray) -> np.ndarray:
        return grey(label)


TASKS.register("edges", Edges())
