"""Metrics as a report writes them: their words, units, bounds, and which are shown."""

from __future__ import annotations

UNITS = {  # all others are percent
    "rmse": "m", "normal_mean": "°", "normal_median": "°", "normal_image_mean": "°", "abs_rel": "", "log10": "",
}  # fmt: skip
WORDS = {
    "normal_mean": "mean angle", "normal_median": "median angle",
    "normal_image_mean": "mean angle of an image", "normal_11.25": "within 11.25°", "abs_rel": "AbsRel",
    "rmse": "RMSE", "delta1": "δ < 1.25", "top1": "top-1", "top5": "top-5", "bbox_mAP": "box mAP", "segm_mAP": "mask mAP",
    "i2t_R@1": "I→T R@1", "i2t_R@5": "I→T R@5", "i2t_R@10": "I→T R@10",
    "t2i_R@1": "T→I R@1", "t2i_R@5": "T→I R@5", "t2i_R@10": "T→I R@10",
}  # fmt: skip
SHOWN = {  # metrics of each kind in the detailed tables
    "segmentation": ("mIoU", "mAcc"),
    "detection": ("bbox_mAP", "segm_mAP"),
    "depth": ("abs_rel", "rmse", "delta1"),
    "normals": ("normal_mean", "normal_median", "normal_11.25"),
    "classification": ("top1", "top5"),
    "image-text": ("i2t_R@1", "i2t_R@5", "i2t_R@10", "t2i_R@1", "t2i_R@5", "t2i_R@10"),
}


def bounds(metric: str) -> tuple[float, float]:
    """The values that a metric can take: an interval is cut there."""
    unit = UNITS.get(metric, "%")
    return 0.0, {"%": 100.0, "°": 180.0}.get(unit, float("inf"))
