"""The mini world's datasets: its classes in official layouts, read like the official datasets.

Folders are relative to the world's root, which takes the place of ``--data-root``.
"""

from dataclasses import replace
from typing import Any

from benchmark.mini.layout import VOC
from benchmark.mini.render import IGNORE
from benchmark.mini.shapes import CLASSES
from probes.datasets.base import DatasetSpec
from probes.datasets.specs import coco, flickr, imagefolder, nyu, voc
from probes.registry import register_dataset


def _spec(official: DatasetSpec, about: str, split: str, **changes: Any) -> DatasetSpec:
    extra = official.extra | changes.pop("extra", {}) | {"split": f"{split} of the mini world"}
    changes |= {"expected": {}, "adapt": None, "is_generated": True, "module": __name__}
    return replace(official, about=f"mini world, {about}", extra=extra, **changes)


DENSE = "probe_train / val"
NAMES = ("background", *CLASSES)
VOC_LAYOUT = DatasetSpec("", "segmentation", VOC, voc.list_samples, ignore_index=IGNORE)
FOLDERS = DatasetSpec("", "classification", "imagefolder", imagefolder.list_samples)
TASKS = (
    _spec(VOC_LAYOUT, "ten classes and background", DENSE, name="mini-seg", classes=NAMES),
    _spec(coco.COCO, "boxes and masks of ten classes", DENSE, name="mini-det", classes=CLASSES),
    _spec(nyu.DEPTH, "depth in metres", DENSE, name="mini-depth", extra={"crop": None}),
    _spec(nyu.NORMAL, "surface normals", DENSE, name="mini-normal"),
    _spec(
        FOLDERS,
        "one dominant object of ten classes",
        "class_train / class_val",
        name="mini-class",
        classes=imagefolder.classes,
    ),
    _spec(flickr.FLICKR30K, "five captions an image", "test", name="mini-retrieval"),
)
for spec in TASKS:
    register_dataset(spec)
