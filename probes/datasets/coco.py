"""COCO 2017 detection and instance segmentation: 80 classes, evaluated on val2017."""

from functools import partial
from pathlib import Path

from probes.datasets.base import DatasetSpec, Sample, Split
from probes.datasets.layouts import coco_images, mmlab_classes
from probes.registry import register_dataset

ANNOTATIONS = {split: f"annotations/instances_{split}2017.json" for split in ("train", "val")}


def list_samples(root: Path, split: Split) -> list[Sample]:
    return coco_images(root, ANNOTATIONS[split], f"{split}2017")


register_dataset(
    DatasetSpec(
        name="coco",
        kind="detection",
        folder="coco",
        list_samples=list_samples,
        expected={"train": 118287, "val": 5000},
        classes=partial(mmlab_classes, "mmdet.datasets", "CocoDataset"),
        annotations=ANNOTATIONS,
        about="COCO 2017 boxes and instance masks, 80 classes (train2017, val2017, annotations from cocodataset.org)",
    )
)
