"""Dense ground truth in MMLab's pipelines."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import probes.runner.bridge  # noqa: F401  before mmseg, which it prepares

# isort: split
import numpy as np
from mmcv.transforms import BaseTransform
from mmseg.registry import TRANSFORMS

from common.errors import UserError
from probes.datasets.base import DatasetSpec
from probes.dense.tasks import DENSE_TASKS


@TRANSFORMS.register_module()
class LoadGroundTruth(BaseTransform):
    """Load the ground truth of a ``DenseDataset``'s sample. Placed after resizing (testing) it
    keeps the label's own resolution.

    Args:
        kind: name of the dense task.
        **options: of its ``DenseTask.read``.

    Raises:
        UserError: the file cannot be read, its labels are out of range, or its size differs from
            the image's.
    """

    def __init__(self, kind: str, **options: Any) -> None:
        self.read: Callable[[str], np.ndarray] = partial(DENSE_TASKS.find(kind).read, **options)

    def transform(self, results: dict[str, Any]) -> dict[str, Any]:
        ground_truth = self.read(results["target_path"])
        if ground_truth.shape[:2] != results["ori_shape"]:
            sizes = [f"{x}×{y}" for y, x in (results["ori_shape"], ground_truth.shape[:2])]
            raise UserError(
                f"{results['img_path']} is {sizes[0]} px but its label map {sizes[1]}; they must be"
                " equal"
            )
        results["gt_seg_map"] = ground_truth
        return results


@TRANSFORMS.register_module()
class FollowImage(BaseTransform):
    """Change values of ground truth whose pixels have followed a flipped or resized image, see
    ``DenseTask.follow``."""

    def __init__(self, kind: str) -> None:
        self.follow = DENSE_TASKS.find(kind).follow

    def transform(self, results: dict[str, Any]) -> dict[str, Any]:
        flipped, scale = bool(results.get("flip")), results.get("scale_factor", (1.0, 1.0))
        results["gt_seg_map"] = self.follow(results["gt_seg_map"], flipped, scale)
        return results


OF_GROUND_TRUTH = ("LoadGroundTruth", "FollowImage")  # transforms that leave the image as it is


def ground_truth_config(spec: DatasetSpec, classes: int, settings: Any = None) -> dict[str, Any]:
    """Config of the ``LoadGroundTruth`` of a dataset, for the settings of a probe."""
    options = DENSE_TASKS.find(spec.kind).reading(spec, classes, settings)
    return {"type": "LoadGroundTruth", "kind": spec.kind, **options}
