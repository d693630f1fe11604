"""Reading dense ground truth: labels, metres and normals from the files of a dataset."""

from __future__ import annotations

from typing import Any

import probes.runner.bridge  # noqa: F401  before mmseg, which it prepares

# isort: split
import cv2
import numpy as np
from mmcv.transforms import BaseTransform
from mmseg.registry import TRANSFORMS
from PIL import Image

from common.errors import UserError
from common.images import IMAGE_ERRORS
from probes.datasets.base import DatasetSpec

FARTHEST = 10_000  # mm, of depths that mask normals


def read_labels(path: str, offset: int, ignore_index: int, classes: int) -> np.ndarray:
    """A label map, (H, W) uint16 class indices or ``ignore_index``.

    Args:
        path: single-channel or palette PNG; 8 or 16 bits.
        offset: added to stored values; a value that would fall below 0 is ignored, as is a stored
            ``ignore_index``.
        ignore_index: value of pixels that are not scored, in the file and in the result.
        classes: number of classes.

    Raises:
        UserError: the file cannot be read, or holds a label that is no class.
    """
    try:
        with Image.open(path) as file:
            stored = np.asarray(file)
    except IMAGE_ERRORS as error:
        raise UserError(f"cannot read label map {path}: {error}") from error
    if stored.ndim != 2:
        raise UserError(
            f"label map {path} has {stored.shape[-1]} channels; it must hold one class index a"
            " pixel"
        )
    labels = stored.astype(np.int32) + offset
    labels[(stored == ignore_index) | (labels < 0)] = ignore_index
    wrong = (labels >= classes) & (labels != ignore_index)
    if wrong.any():
        raise UserError(
            f"label map {path} holds {labels[wrong][0] - offset}, which is none of the {classes}"
            " classes"
        )
    return labels.astype(np.uint16)


def read_depth(path: str, scale: float) -> np.ndarray:
    """A depth PNG (8 or 16 bits, stored 0 = unknown) × ``scale`` → (H, W) float32 metres, 0 where
    unknown."""
    stored = cv2.imread(path, cv2.IMREAD_UNCHANGED)
    if stored is None or stored.ndim != 2:
        raise UserError(f"cannot read depth map {path}; it must be a PNG with one channel")
    return stored.astype(np.float32) * np.float32(scale)


def read_normals(path: str) -> np.ndarray:
    """An 8-bit RGB PNG with n = value / 127.5 - 1 → (H, W, 3) float32 unit vectors; stored (0, 0,
    0) stays (0, 0, 0).

    A stored vector shorter than a half counts as unknown, too: its direction is noise.
    """
    stored = cv2.imread(path, cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION)
    if stored is None:
        raise UserError(f"cannot read normal map {path}; it must be an 8-bit RGB PNG")
    stored = cv2.cvtColor(stored, cv2.COLOR_BGR2RGB)
    normals = stored.astype(np.float32)
    normals /= 127.5
    normals -= 1
    # without linalg.norm and where, which take longer than reading the file
    length = np.sqrt(np.einsum("hwc,hwc->hw", normals, normals))
    valid = ((stored[..., 0] > 0) | (stored[..., 1] > 0) | (stored[..., 2] > 0)) & (length > 0.5)
    normals *= np.where(valid, 1 / np.maximum(length, 1e-6), 0)[..., None]
    return normals


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
