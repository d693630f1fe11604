"""Scores of dense predictions at the label's own resolution, over the set and for each image.

Each class is an mmengine metric. After ``compute_metrics`` it also has ``per_image``: arrays whose first axis is the
images in the order of the dataset, and ``notes``: lines on what was left out. Percentages are 0–100.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import probes.runner.bridge  # noqa: F401  first: it gives mmcv the operators that mmseg's import asks for

# isort: split
import numpy as np
import torch
from mmengine.dist import all_reduce
from mmengine.evaluator import BaseMetric
from mmseg.registry import METRICS

from backbones.errors import UserError


def class_areas(prediction: np.ndarray, label: np.ndarray, classes: int, ignore_index: int) -> dict[str, np.ndarray]:
    """Pixel counts of one image, each (classes,) int64: ``intersection``, ``prediction`` and ``label``; pixels whose
    label is ``ignore_index`` count nowhere.

    Args:
        prediction, label: (H, W) integer class indices.
    """
    # one histogram of pairs, with a last bin for what is not scored
    pairs = np.where(label == ignore_index, classes**2, label * classes + prediction)
    counts = np.bincount(pairs.ravel(), minlength=classes**2 + 1)[:-1].reshape(classes, classes)
    return {"intersection": counts.diagonal().copy(), "prediction": counts.sum(axis=0), "label": counts.sum(axis=1)}


def segmentation_scores(areas: dict[str, np.ndarray]) -> tuple[dict[str, float], np.ndarray]:
    """mIoU, mAcc and aAcc in percent, and the IoU of each class (NaN where a class is in neither truth nor
    prediction).

    As in mmseg (and the PASCAL VOC challenge): areas are summed over the set first; mIoU is the mean over the classes
    present in truth or prediction, mAcc over those present in truth, aAcc the share of right pixels.

    Args:
        areas: ``intersection``, ``prediction``, ``label``, each (classes,) or (images, classes).
    """
    hit, predicted, true = (np.atleast_2d(areas[key]).sum(axis=0) for key in ("intersection", "prediction", "label"))
    with np.errstate(invalid="ignore", divide="ignore"):
        iou = 100 * hit / (predicted + true - hit)
        accuracy = 100 * hit / true
        overall = 100 * hit.sum() / true.sum()
    return {"mIoU": _mean(iou), "mAcc": _mean(accuracy), "aAcc": float(overall)}, iou


def depth_scores(prediction: np.ndarray, truth: np.ndarray) -> dict[str, float]:
    """Scores of one image over its valid pixels (Eigen, Puhrsch, Fergus 2014, section 4.3).

    ``abs_rel`` = mean |p - t| / t; ``rmse`` in metres; ``log10`` = mean |log10 p - log10 t|; ``delta1`` … ``delta3``
    = percent of pixels with max(p / t, t / p) < 1.25, 1.25², 1.25³.

    Args:
        prediction, truth: (pixels,) metres, > 0; not empty.
    """
    prediction, truth = prediction.astype(np.float64), truth.astype(np.float64)
    ratio = np.maximum(prediction / truth, truth / prediction)
    difference = prediction - truth
    return {
        "abs_rel": float(np.mean(np.abs(difference) / truth)),
        "rmse": float(np.sqrt(np.mean(difference**2))),
        "log10": float(np.mean(np.log10(ratio))),  # the ratio is above 1: |log10 p - log10 t|
        **{f"delta{k}": float(100 * np.mean(ratio < 1.25**k)) for k in (1, 2, 3)},
    }


def cropped(pixels: np.ndarray, crop: Sequence[int] | None) -> np.ndarray:
    """(…, H, W) inside ``crop`` = (top, bottom, left, right), bottom and right exclusive; all of it when None.

    Raises:
        UserError: the picture does not hold the crop.
    """
    if crop is None:
        return pixels
    top, bottom, left, right = crop
    height, width = pixels.shape[-2:]
    if bottom > height or right > width:
        raise UserError(
            f"the evaluation crop (rows {top}-{bottom}, columns {left}-{right}) does not fit a {width}×{height} "
            "label map; the dataset must be at its official resolution"
        )
    return pixels[..., top:bottom, left:right]


def angles(prediction: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Angles in degrees, [0, 180], between vectors (3, pixels) of any length, in float64.

    By atan2(|p × t|, p · t): unlike arccos it is exact for small angles, and no rounding leaves its domain.
    """
    prediction, truth = prediction.astype(np.float64), truth.astype(np.float64)
    (px, py, pz), (tx, ty, tz) = prediction, truth
    cross = np.sqrt((py * tz - pz * ty) ** 2 + (pz * tx - px * tz) ** 2 + (px * ty - py * tx) ** 2)
    return np.degrees(np.arctan2(cross, px * tx + py * ty + pz * tz))


class PerImageMetric(BaseMetric):
    """A metric whose results are one dict of arrays and numbers for each image, with ``image`` its relative path."""

    def __init__(self) -> None:
        super().__init__(collect_device="cpu")
        self.per_image: dict[str, np.ndarray] = {}
        self.notes: list[str] = []

    def process(self, data_batch: Any, data_samples: Sequence[dict[str, Any]]) -> None:
        self.results += [{"image": sample["image"], **self.score(sample)} for sample in data_samples]

    def score(self, sample: dict[str, Any]) -> dict[str, Any]:
        """Numbers of one image (a SegDataSample as a dict, with truth and prediction at the label's resolution)."""
        raise NotImplementedError

    def compute_metrics(self, results: list[dict[str, Any]]) -> dict[str, float]:
        self.per_image = {key: np.array([result[key] for result in results]) for key in results[0]}
        self.notes = []
        return self.summary()

    def summary(self) -> dict[str, float]:
        """Metrics of the set, from ``per_image``; may add to ``notes``."""
        raise NotImplementedError


@METRICS.register_module()
class SegmentationScores(PerImageMetric):
    """mIoU, mAcc, aAcc; see ``segmentation_scores``. ``per_image``: (images, classes) areas; ``class_iou``:
    (classes,) percent."""

    def __init__(self, ignore_index: int = 255) -> None:
        super().__init__()
        self.ignore_index = ignore_index
        self.class_iou = np.empty(0)

    def score(self, sample: dict[str, Any]) -> dict[str, Any]:
        prediction, label = (_array(sample[key])[0] for key in ("pred_sem_seg", "gt_sem_seg"))  # int64
        return class_areas(prediction, label, len(self.dataset_meta["classes"]), self.ignore_index)

    def summary(self) -> dict[str, float]:
        metrics, self.class_iou = segmentation_scores(self.per_image)
        names = self.dataset_meta["classes"]
        if absent := [name for name, iou in zip(names, self.class_iou, strict=True) if np.isnan(iou)]:
            shown = ", ".join(absent[:8]) + (f" and {len(absent) - 8} more" if len(absent) > 8 else "")
            counted = f"{len(names) - len(absent)} of {len(names)} classes"
            self.notes.append(f"mIoU is over {counted}; in no label and no prediction: {shown}")
        if len(names) <= 25:
            ious = [f"{name} {iou:.1f}" for name, iou in zip(names, self.class_iou, strict=True) if not np.isnan(iou)]
            self.notes.append(f"IoU by class: {', '.join(ious)}")
        return metrics


@METRICS.register_module()
class DepthScores(PerImageMetric):
    """The means over images of ``depth_scores``, as mmseg and most papers on NYU-v2 report them.

    Scored are pixels with min_depth < truth < max_depth inside the crop; images without any are left out and said so.

    Args:
        min_depth, max_depth: valid range of the truth, metres.
        crop: (top, bottom, left, right) in pixels of the label map, bottom and right exclusive; None for the whole
            map.
    """

    def __init__(self, min_depth: float, max_depth: float, crop: Sequence[int] | None = None) -> None:
        super().__init__()
        self.min_depth, self.max_depth, self.crop = min_depth, max_depth, crop

    def score(self, sample: dict[str, Any]) -> dict[str, Any]:
        prediction, truth = (_array(sample[key])[0] for key in ("pred_depth_map", "gt_depth_map"))
        prediction, truth = cropped(prediction, self.crop), cropped(truth, self.crop)
        valid = (truth > self.min_depth) & (truth < self.max_depth)
        pixels = int(valid.sum())
        if not pixels:
            return {**dict.fromkeys(depth_scores(np.ones(1), np.ones(1)), float("nan")), "pixels": 0}
        return depth_scores(prediction[valid], truth[valid]) | {"pixels": pixels}

    def summary(self) -> dict[str, float]:
        _note_empty(self)
        return {key: _mean(values) for key, values in self.per_image.items() if key not in ("image", "pixels")}


@METRICS.register_module()
class NormalScores(PerImageMetric):
    """Angular errors over all valid pixels of the set together, as Fouhey et al. 2013 and later papers report them.

    ``normal_mean`` and ``normal_median`` in degrees; ``normal_11.25``, ``normal_22.5``, ``normal_30``: percent of
    pixels whose error is below. The median comes from a histogram of 0.01° bins (its memory does not grow with the
    set), so it is right within 0.005°; the others are exact. Valid are pixels whose truth is not (0, 0, 0).
    ``per_image`` has the same of each image and ``pixels``: weighted by them, all but the median give back the
        metrics.

    Args:
        crop: (top, bottom, left, right) in pixels of the label map, bottom and right exclusive; None for the whole
            map.
    """

    BIN = 0.01
    WITHIN = (11.25, 22.5, 30)

    def __init__(self, crop: Sequence[int] | None = None) -> None:
        super().__init__()
        self.crop = crop
        self.histogram = np.zeros(round(180 / self.BIN) + 1, np.int64)

    def score(self, sample: dict[str, Any]) -> dict[str, Any]:
        prediction, truth = (_array(sample[key]) for key in ("pred_normal_map", "gt_normal_map"))
        prediction, truth = cropped(prediction, self.crop), cropped(truth, self.crop)
        valid = truth.any(axis=0)
        error = angles(prediction[:, valid], truth[:, valid])
        if not error.size:
            error = np.array([float("nan")])
        else:
            self.histogram += np.bincount((error / self.BIN).astype(np.int64), minlength=self.histogram.size)
        return {
            "normal_mean": float(error.mean()),
            "normal_median": float(np.median(error)),
            **{f"normal_{limit:g}": float(100 * np.mean(error < limit)) for limit in self.WITHIN},
            "pixels": int(valid.sum()),
        }

    def summary(self) -> dict[str, float]:
        _note_empty(self)
        histogram = torch.from_numpy(self.histogram)
        all_reduce(histogram)  # other processes scored other images; alone it does nothing
        self.histogram = np.zeros_like(self.histogram)
        pixels = self.per_image["pixels"]
        mean = {
            key: float(np.average(values[pixels > 0], weights=pixels[pixels > 0])) if pixels.any() else float("nan")
            for key, values in self.per_image.items()
            if key not in ("image", "pixels")
        }
        return mean | {"normal_median": histogram_median(histogram.numpy(), self.BIN)}


def histogram_median(counts: np.ndarray, width: float) -> float:
    """Middle of the bin that holds the median of what was counted in bins of ``width`` from 0 on; NaN when all are
    empty."""
    if not counts.sum():
        return float("nan")
    return float((np.searchsorted(np.cumsum(counts), (counts.sum() + 1) // 2) + 0.5) * width)


def _note_empty(metric: PerImageMetric) -> None:
    empty = metric.per_image["image"][metric.per_image["pixels"] == 0]
    if len(empty):
        count = f"{len(empty)} of {len(metric.per_image['image'])}"
        metric.notes.append(f"{count} images have no valid pixel and are not scored: {', '.join(empty[:5])}")


def _array(pixels: dict[str, Any]) -> np.ndarray:
    return pixels["data"].cpu().numpy()


def _mean(values: np.ndarray) -> float:
    """Mean of those that are there; NaN, without a warning, when none is."""
    present = values[~np.isnan(values)]
    return float(present.mean()) if present.size else float("nan")
