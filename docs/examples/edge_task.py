"""Boundaries of objects, a family of dense tasks: probes and a task of CLIPTeX; and its expert.

``python edge_task.py COCO DIR`` writes the boundaries of COCO's instances to DIR/edges.
"""

import shutil
import sys
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from pycocotools.coco import COCO
from torch import Tensor
from torch.nn import functional as F

from backbones.cliptex.experts.base import EXPERTS
from backbones.cliptex.experts.unet import UNetExpert
from backbones.cliptex.targets import ScalarMap, Summed
from probes.datasets.base import DatasetSpec, mirrored
from probes.dense.probe import register_dense_task
from probes.dense.tasks import DenseTask
from probes.registry import register_dataset
from reports.records import Metric

METRICS = {"ODS": Metric()}  # F at the best threshold of all images together
STEPS = np.arange(1, 20) / 20  # thresholds
COUNTED = ("predicted", "right", "true", "recalled")


def counts(prediction: Tensor, target: Tensor) -> dict[str, Tensor]:
    """Pixels of maps (1, H, W) at each threshold: edges predicted and true, and those with one of
    the other map nearby (BSDS assigns them one to one instead)."""
    reach = max(1, round(0.0075 * float(np.hypot(*target.shape[-2:]))))
    steps = torch.from_numpy(STEPS).to(prediction)[:, None, None]
    values, true = prediction[None], (target > 0.5)[None]
    near = [F.max_pool2d(each, 2 * reach + 1, 1, reach) for each in (values, true.float())]
    predicted, recalled = values > steps, true & (near[0] > steps)
    maps = predicted, predicted & (near[1] > 0), true.expand_as(predicted), recalled
    return {name: each.sum((0, 2, 3)) for name, each in zip(COUNTED, maps, strict=True)}


def f_measure(sums: dict[str, np.ndarray]) -> np.ndarray:
    """F in per cent of precision and recall, from ``counts`` that were summed over images."""
    precision = sums["right"] / np.maximum(sums["predicted"], 1)
    recall = sums["recalled"] / np.maximum(sums["true"], 1)
    return 200 * precision * recall / np.maximum(precision + recall, 1e-9)


class Edges(ScalarMap, DenseTask):
    name, about, unknown = "edges", "boundaries of objects, 0 to 1", -1.0
    metrics = METRICS

    def valid(self, target: Tensor) -> Tensor:
        return target >= 0  # unknown is NaN in labels of CLIPTeX, and -1 around crops of probes

    def loss(self, prediction: Tensor, target: Tensor) -> Summed:
        """Cross-entropy of logits; an edge counts four times, as edges are rare."""
        valid, logits = self.valid(target), prediction.float()
        weight = logits.new_tensor(4.0)
        entropy = F.binary_cross_entropy_with_logits(
            logits[valid], target[valid], pos_weight=weight, reduction="sum"
        )
        return entropy, self.count(target)

    def predict(self, output: Tensor) -> Tensor:
        return output[:, 0].sigmoid()

    def score(self, prediction: Tensor, target: Tensor) -> dict[str, Tensor]:
        return counts(prediction, target)

    def summary(self, arrays, weights):
        return {"ODS": f_measure({name: weights @ arrays[name] for name in COUNTED}).max(1)}


class EdgeExpert(UNetExpert):
    name, task, about = "edge-unet", "edges", "boundaries of objects; a U-Net"


register_dense_task(Edges())
register_dataset(
    DatasetSpec("edges", "edges", "edges", mirrored("images/{part}", "annotations/{part}"))
)
EXPERTS.register("edge-unet", EdgeExpert)


def write_boundaries(coco: Path, out: Path) -> None:
    for part in ("train", "val"):
        index, folder = COCO(coco / f"annotations/instances_{part}2017.json"), out / "edges"
        for image in index.imgs.values():
            instance, edge = np.zeros((2, image["height"], image["width"]), np.uint16)
            for number, annotation in enumerate(index.imgToAnns[image["id"]], start=1):
                instance[index.annToMask(annotation) > 0] = number
            edge[1:] |= instance[1:] != instance[:-1]
            edge[:, 1:] |= instance[:, 1:] != instance[:, :-1]
            for name in ("images", "annotations"):
                (folder / name / part).mkdir(parents=True, exist_ok=True)
            photo = Path(image["file_name"])
            shutil.copy(coco / f"{part}2017" / photo, folder / "images" / part / photo.name)
            Image.fromarray(65535 * edge).save(folder / "annotations" / part / f"{photo.stem}.png")


if __name__ == "__main__":
    write_boundaries(*map(Path, sys.argv[1:]))
