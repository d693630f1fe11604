"""Scores of dense predictions at the label's own resolution, over the set and for each image.

Images are scored where the model computes (no number leaves the device before the end of an
evaluation). Percentages are 0–100.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from mmengine.evaluator import BaseMetric
from mmseg.registry import METRICS
from torch import Tensor

from probes.dense.tasks import DENSE_TASKS

SHOWN_SIDE = 512  # of what is drawn, pixels


@METRICS.register_module()
class TaskScores(BaseMetric):
    """The metrics of a ``DenseTask`` for mmengine's evaluator.

    Args:
        task: name of the dense task.
        **options: its attributes, as ``DenseTask.evaluator`` gives them.

    Attributes:
        per_image: after ``compute_metrics``: arrays whose first axis is the images in the order of
            the dataset, with ``image``, their relative paths.
        notes: lines on what was left out.
        shown: prediction and ground truth of the images in ``dataset_meta["gallery"]``, with every
            k-th row and column, so that at most ``SHOWN_SIDE`` are left.
    """

    default_prefix = ""  # mmengine warns of None

    def __init__(self, task: str, **options: Any) -> None:
        super().__init__(collect_device="cpu")
        self.task = DENSE_TASKS.find(task).bound(**options)
        self.per_image: dict[str, np.ndarray] = {}
        self.notes: list[str] = []
        self.shown: dict[str, list[Tensor]] = {}

    def process(self, data_batch: Any, data_samples: Sequence[dict[str, Any]]) -> None:
        """Score a batch: all of its images count or, where one fails, none does."""
        task, metainfo = self.task, self.dataset_meta or {}
        before = None if task.pooled is None else task.pooled.clone()
        task.classes = metainfo.get("classes", ())
        results = []
        try:
            for sample in data_samples:
                maps = [sample[f"{which}_{task.field}"]["data"] for which in ("pred", "gt")]
                results.append({"image": sample["image"], **task.score(*maps)})
                if sample["image"] in metainfo.get("gallery", ()):
                    self.shown[sample["image"]] = list(map(_shrunk, maps))
        except Exception:
            task.pooled = before
            raise
        self.results += results

    def compute_metrics(self, results: list[dict[str, Any]]) -> dict[str, float]:
        self.per_image = {
            key: np.array([np.asarray(result[key]) for result in results]) for key in results[0]
        }
        self.notes = []
        metrics = self.task.metrics_of(self.per_image, self.notes)
        self.task.pooled = None
        return metrics


def _shrunk(values: Tensor) -> Tensor:
    """A copy of (channels, H, W) to be drawn; see ``TaskScores.shown``."""
    step = math.ceil(max(values.shape[1:]) / SHOWN_SIDE)
    part = values[:, ::step, ::step]
    return part.clone() if values.is_floating_point() else part.short()
