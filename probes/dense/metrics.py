"""Scores of dense predictions at the label's own resolution, over the set and for each image.

Each class is an mmengine metric. Images are scored where the model computes (no number leaves the
device before the end of an evaluation). After ``compute_metrics`` it also has ``per_image``: arrays
whose first axis is the images in the order of the dataset, and ``notes``: lines on what was left
out. Percentages are 0–100.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from mmengine.evaluator import BaseMetric
from mmseg.registry import METRICS
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from cliptex_common.dense_maps.scores import class_areas, confusion
from cliptex_common.device import float64_device
from cliptex_common.errors import UserError
from probes.dense.areas import bounds_scored
from probes.dense.segmentation import class_ious
from probes.dense.tasks import DENSE_TASKS

SHOWN_SIDE = 512  # of what is drawn, pixels


def segmentation_scores(areas: Mapping[str, Any]) -> tuple[dict[str, float], np.ndarray]:
    """mIoU, mAcc and aAcc in percent, and the IoU of each class (NaN where a class is in neither
    ground truth nor prediction); see ``Segmentation.summary``.

    Args:
        areas: ``intersection``, ``prediction``, ``label`` in pixels, each (classes,) or (images,
            classes), tensors or arrays.
    """
    names = ("intersection", "prediction", "label")
    arrays = {name: np.atleast_2d(areas[name]) for name in names}
    weights = np.ones((1, len(arrays["label"])))
    scores = DENSE_TASKS["segmentation"].summary(arrays, weights)
    return {name: float(value[0]) for name, value in scores.items()}, class_ious(arrays, weights)[0]


def hungarian_miou(counts: Tensor) -> float:
    """mIoU in percent of the best one-to-one assignment of predicted to true classes, over all
    classes: one that does not occur counts as 0 (Open-Hummingbird's metric).

    Args:
        counts: (classes, classes) pixels by label and prediction.
    """
    hit = counts.cpu().double()
    union = hit.sum(dim=0) + hit.sum(dim=1, keepdim=True) - hit
    iou = 100 * hit / union.clamp_min(1)
    return float(iou[linear_sum_assignment(iou.numpy(), maximize=True)].mean())


def cropped(pixels: Tensor, crop: Sequence[Any] | None) -> Tensor:
    """(…, H, W) inside ``crop``, see ``tasks.areas``; all of it when None. On a device that
    can sum it in float64: its own, else the CPU.

    Raises:
        UserError: the crop does not fit.
    """
    pixels = pixels.to(float64_device(pixels.device))
    if crop is None:
        return pixels
    height, width = pixels.shape[-2:]
    y1, y2, x1, x2 = bounds_scored(tuple(crop), height, width)
    if y2 > height or x2 > width:
        raise UserError(
            f"the evaluation crop (rows {y1}-{y2}, columns {x1}-{x2}) does not fit a"
            f" {width}×{height} label map; the dataset must be at its official resolution"
        )
    return pixels[..., y1:y2, x1:x2]


@METRICS.register_module()
class TaskScores(BaseMetric):
    """A metric whose results are one dict of tensors for each image, with ``image`` its relative
    path. ``score`` and ``summary`` are those of a ``DenseTask``, unless a subclass has its own.

    Args:
        task: name of the dense task.

    Attributes:
        pooled: counts over all images so far, which are too many to be stored for each image.
        shown: prediction and ground truth of the images in ``dataset_meta["gallery"]``, with every
            k-th row and column, so that at most ``SHOWN_SIDE`` are left.
    """

    default_prefix = ""  # mmengine warns of None

    def __init__(self, task: str) -> None:
        super().__init__(collect_device="cpu")
        self.task = DENSE_TASKS.find(task)
        self.per_image: dict[str, np.ndarray] = {}
        self.notes: list[str] = []
        self.pooled: Tensor | None = None
        self.shown: dict[str, list[Tensor]] = {}

    def process(self, data_batch: Any, data_samples: Sequence[dict[str, Any]]) -> None:
        """Score a batch: all of its images count or, where one fails, none does."""
        before = None if self.pooled is None else self.pooled.clone()
        gallery = (self.dataset_meta or {}).get("gallery", ())
        results = []
        try:
            for sample in data_samples:
                maps = [sample[f"{which}_{self.task.field}"]["data"] for which in ("pred", "gt")]
                results.append({"image": sample["image"], **self.score(*maps)})
                if sample["image"] in gallery:
                    self.shown[sample["image"]] = list(map(_shrunk, maps))
        except Exception:
            self.pooled = before
            raise
        self.results += results

    def score(self, prediction: Tensor, target: Tensor) -> dict[str, Any]:
        """Tensors of one image, from its (channels, H, W) at the label's resolution; adds its
        counts to ``pooled``, where a metric has some."""
        return self.task.score(prediction, target)

    def compute_metrics(self, results: list[dict[str, Any]]) -> dict[str, float]:
        self.per_image = {
            key: np.array([np.asarray(result[key]) for result in results]) for key in results[0]
        }
        self.notes = []
        metrics = self.summary()
        self.pooled = None
        return metrics

    def summary(self) -> dict[str, float]:
        """Metrics of the set, from ``per_image``; may add to ``notes``."""
        sets = np.ones((1, len(self.per_image["image"])))
        scores = self.task.summary(self.per_image, sets)
        return {name: float(values[0]) for name, values in scores.items()}


def _shrunk(values: Tensor) -> Tensor:
    """A copy of (channels, H, W) to be drawn; see ``TaskScores.shown``."""
    step = math.ceil(max(values.shape[1:]) / SHOWN_SIDE)
    part = values[:, ::step, ::step]
    return part.clone() if values.is_floating_point() else part.short()


@METRICS.register_module()
class SegmentationScores(TaskScores):
    """mIoU, mAcc, aAcc; see ``segmentation_scores``. ``per_image`` has (images, classes) areas.

    Args:
        hungarian: score ``mIoU_hungarian`` too; see ``hungarian_miou``.
    """

    def __init__(self, ignore_index: int = 255, hungarian: bool = False) -> None:
        super().__init__("segmentation")
        self.ignore_index, self.hungarian = ignore_index, hungarian

    def score(self, prediction: Tensor, target: Tensor) -> dict[str, Any]:
        classes = len(self.dataset_meta["classes"])
        counts = confusion(prediction[0], target[0], classes, self.ignore_index)
        if self.hungarian:
            self.pooled = counts if self.pooled is None else self.pooled + counts
        return class_areas(counts)

    def summary(self) -> dict[str, float]:
        metrics, ious = segmentation_scores(self.per_image)
        if self.pooled is not None:
            metrics["mIoU_hungarian"] = hungarian_miou(self.pooled)
        names = self.dataset_meta["classes"]
        absent = [name for name, iou in zip(names, ious, strict=True) if np.isnan(iou)]
        if absent:
            more = f" and {len(absent) - 8} more" if len(absent) > 8 else ""
            self.notes.append(
                f"mIoU is over {len(names) - len(absent)} of {len(names)} classes; absent from"
                f" labels and predictions: {', '.join(absent[:8])}{more}"
            )
        if len(names) <= 25:
            scores = [f"{name} {iou:.1f}" for name, iou in zip(names, ious, strict=True)]
            self.notes.append(f"IoU by class: {', '.join(scores)}")
        return metrics


def note_empty(metric: TaskScores) -> None:
    """Add a note on images without a valid pixel."""
    empty = metric.per_image["image"][metric.per_image["pixels"] == 0]
    if len(empty):
        count = f"{len(empty)} of {len(metric.per_image['image'])}"
        metric.notes.append(
            f"{count} images have no valid pixel and are not scored: {', '.join(empty[:5])}"
        )
