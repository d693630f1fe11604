"""A dense task of your own for CLIPTeX, which learns it from the labels of an expert. Try it:

python -m benchmark train --plugin edges.py --recipe cliptex --set experts=edges --init random \\
    --set lambda_edges=0.5 --pairs 'DIR/{00000..00009}.tar' --labels labels --out w.safetensors
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from backbones.cliptex.targets import ScalarMap, Summed
from backbones.cliptex.tasks import TASKS


class Edges(ScalarMap):  # a number a pixel; there are ClassMap, VectorMap and LabelMap, too
    name = "edges"  # of what its expert predicts, of its files KEY.edges.png and its λ
    about = "one line for lists"
    value_range = (0, 1)  # of labels, NaN where unknown

    # prediction and target: (N, H, W)
    def loss(self, prediction: Tensor, target: Tensor) -> Summed:  # sum and count, not the mean
        valid, logits = self.valid(target), prediction.float()
        each = F.binary_cross_entropy_with_logits(logits, target.nan_to_num(), reduction="none")
        return torch.where(valid, each, 0.0).sum(), valid.sum().float()

    def predict(self, output: Tensor) -> Tensor:  # an expert's or a head's (N, 1, H, W)
        return output[:, 0].sigmoid()

    # of one image, (1, H, W); metrics are means over images, or see ``summary``
    def score(self, prediction: Tensor, target: Tensor) -> dict[str, Tensor]:
        return {"edges_error": (prediction - target).abs().nanmean()}


TASKS.register("edges", Edges())
