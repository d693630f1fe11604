"""Dense ground truth in MMLab's pipelines."""

from __future__ import annotations

from typing import Any

import probes.runner.bridge  # noqa: F401  before mmseg, which it prepares

# isort: split
import numpy as np
from mmcv.transforms import BaseTransform
from mmseg.registry import TRANSFORMS

from common.dense_maps.read import read_depth, read_labels, read_normals
from common.errors import UserError
from probes.datasets.base import DatasetSpec

FARTHEST = 10_000  # mm, of depths that mask normals


@TRANSFORMS.register_module()
class LoadGroundTruth(BaseTransform):
    """Load the ground truth of a ``DenseDataset``'s sample. Placed after resizing (testing) it
    keeps the label's own resolution.

    Args:
        kind: ``segmentation``, ``depth`` or ``normals``.
        classes, label_offset, ignore_index: see ``read_labels`` (segmentation).
        depth_scale: metres per stored unit (depth).
        mask: ``depth`` for normals only where the image's depth is known too.

    Raises:
        UserError: the file cannot be read, its labels are out of range, or its size differs from
            the image's.
    """

    def __init__(
        self,
        kind: str,
        classes: int = 0,
        label_offset: int = 0,
        ignore_index: int = 255,
        depth_scale: float = 1.0,
        mask: str = "normals",
    ) -> None:
        self.kind, self.depth_scale, self.mask = kind, depth_scale, mask
        self.labels = (label_offset, ignore_index, classes)

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

    def read(self, path: str) -> np.ndarray:
        """(H, W) labels or metres, or (H, W, 3) normals."""
        if self.kind == "segmentation":
            return read_labels(path, *self.labels)
        if self.kind == "depth":
            return read_depth(path, self.depth_scale)
        normals = read_normals(path)
        if self.mask == "depth":
            stored = read_depth(path.replace("/normals/", "/annotations/"), 1.0)
            normals[(stored == 0) | (stored > FARTHEST)] = 0
        return normals


def ground_truth_config(spec: DatasetSpec, classes: int, mask: str = "normals") -> dict[str, Any]:
    """Config of the ``LoadGroundTruth`` of a dataset."""
    config: dict[str, Any] = {"type": "LoadGroundTruth", "kind": spec.kind}
    if spec.kind == "segmentation":
        config |= {
            "classes": classes,
            "label_offset": spec.label_offset,
            "ignore_index": spec.ignore_index,
        }
    if spec.kind == "depth":
        config["depth_scale"] = spec.extra["depth_scale"]
    if mask != "normals":
        config["mask"] = mask
    return config
