"""Pipelines of images with dense ground truth.

The transforms between loading and packing are mmcv's, mmseg's and ``probes.dense.transforms``'s.
Within a pipeline the ground truth is ``results["gt_seg_map"]``, the name that mmcv's transforms
know, as ``DenseTask.read`` gives it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import cv2
import numpy as np
import torch
from mmcv.transforms import BaseTransform
from mmengine.structures import PixelData
from mmseg.registry import TRANSFORMS
from mmseg.structures import SegDataSample

from cliptex_common.errors import UserError
from probes.datasets.base import DatasetSpec
from probes.dense.tasks import DENSE_TASKS

Part = dict[str, Any]  # of a config
# orientation tags are ignored: label maps lie over the stored pixels
LOAD = {"type": "LoadImageFromFile", "color_type": "color_ignore_orientation"}
META_KEYS = ("image", "img_path", "ori_shape", "area", "img_shape", "pad_shape", "img_padding_size")


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
        self.read: Any = partial(DENSE_TASKS.find(kind).load, **options)

    def transform(self, results: dict[str, Any]) -> dict[str, Any]:
        ground_truth = self.read(results["target_path"])
        if ground_truth.shape[:2] != results["ori_shape"]:
            sizes = [f"{x}×{y}" for y, x in (results["ori_shape"], ground_truth.shape[:2])]
            raise UserError(
                f"{results['img_path']} is {sizes[0]} px but its ground truth {sizes[1]}; they must"
                " be equal"
            )
        results["gt_seg_map"] = ground_truth
        return results


@TRANSFORMS.register_module()
class FollowImage(BaseTransform):
    """Multiply values of ground truth whose pixels have followed a mirrored or resized image by
    ``DenseTask.factors``."""

    def __init__(self, kind: str) -> None:
        self.factors = DENSE_TASKS.find(kind).factors

    def transform(self, results: dict[str, Any]) -> dict[str, Any]:
        resized, enlarged = (results.get(key, (1.0, 1.0)) for key in ("scale_factor", "enlarged"))
        scale = resized[0] * enlarged[0], resized[1] * enlarged[1]
        factors = self.factors(bool(results.get("flip")), scale)
        if any(factor != 1 for factor in factors):
            ground_truth = results["gt_seg_map"]
            results["gt_seg_map"] = ground_truth * np.array(factors, ground_truth.dtype)
        return results


@TRANSFORMS.register_module()
class PadCrop(BaseTransform):
    """Pad image and ground truth at the right and the bottom to ``size`` = (height, width) px, with
    the values ``image`` (BGR 0–255) and ``ground_truth``."""

    def __init__(self, size: Sequence[int], image: Sequence[float], ground_truth: float) -> None:
        self.size, self.image, self.ground_truth = size, tuple(image), ground_truth

    def transform(self, results: dict[str, Any]) -> dict[str, Any]:
        height, width = results["img"].shape[:2]
        bottom, right = max(0, self.size[0] - height), max(0, self.size[1] - width)
        border = (0, bottom, 0, right, cv2.BORDER_CONSTANT)
        results["img"] = cv2.copyMakeBorder(results["img"], *border, value=self.image)
        if "gt_seg_map" in results:
            results["gt_seg_map"] = cv2.copyMakeBorder(
                results["gt_seg_map"], *border, value=(self.ground_truth,) * 3
            )
        results["img_shape"] = results["img"].shape[:2]
        return results


def image_only(pipeline: Sequence[Mapping[str, Any]]) -> list[Part]:
    """A pipeline without what only concerns the ground truth: equal for all tasks with the same
    crops of the same images."""
    fixed = {"kind": "segmentation", "ground_truth": 0}
    return [
        {**part, **{name: fixed[name] for name in fixed.keys() & part.keys()}}
        for part in pipeline
        if part["type"] not in ("LoadGroundTruth", "FollowImage")
    ]


def ground_truth_config(spec: DatasetSpec, classes: int, settings: Any = None) -> dict[str, Any]:
    """Config of the ``LoadGroundTruth`` of a dataset, for the settings of a probe."""
    options = DENSE_TASKS.find(spec.kind).reading(spec, classes, settings)
    return {"type": "LoadGroundTruth", "kind": spec.kind, **options}


@TRANSFORMS.register_module()
class PackRGB(BaseTransform):
    """Tensors for the model: ``inputs`` (3, H, W) uint8 RGB and a ``SegDataSample`` with the ground
    truth of the dense task ``kind``: (1, H, W) int64 classes or (channels, H, W) float32."""

    def __init__(self, kind: str) -> None:
        self.field = f"gt_{DENSE_TASKS.find(kind).field}"

    def transform(self, results: dict[str, Any]) -> dict[str, Any]:
        # RGB here, at no cost: mmseg would swap channels by a list that it copies to the device
        rgb = results["img"][..., ::-1].transpose(2, 0, 1)
        image = torch.from_numpy(np.ascontiguousarray(rgb))
        # features are made of images alone
        target = channels_first(results["gt_seg_map"]) if "gt_seg_map" in results else None
        return {"inputs": image, "data_samples": dense_sample(results, self.field, target)}


def channels_first(ground_truth: np.ndarray) -> torch.Tensor:
    """(H, W) → (1, H, W); (H, W, 3) → (3, H, W)."""
    channels = ground_truth.transpose(2, 0, 1) if ground_truth.ndim == 3 else ground_truth[None]
    return torch.from_numpy(np.ascontiguousarray(channels))


class DenseSample(SegDataSample):
    """A sample whose ground truth a loader can pin, so that its copy to a GPU is asynchronous."""

    def pin_memory(self) -> DenseSample:
        for field in [key for key in self.keys() if key.startswith("gt_")]:
            self.set_data({field: PixelData(data=self.get(field).data.pin_memory())})
        return self


def dense_sample(
    metadata: Mapping[str, Any], field: str, target: torch.Tensor | None
) -> SegDataSample:
    """The sample of one image for mmseg's heads and evaluators: ``target`` (labels as int64) under
    ``field``, with the names and shapes in ``metadata``."""
    sample = DenseSample(metainfo={key: metadata[key] for key in META_KEYS if key in metadata})
    if target is not None:
        data = target if target.is_floating_point() else target.long()
        sample.set_data({field: PixelData(data=data)})
    return sample
