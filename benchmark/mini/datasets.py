"""The mini world's datasets: its classes in official layouts, read like the official datasets.

Folders are relative to the world's root, which takes the place of ``--data-root``.
"""

from dataclasses import replace
from typing import Any

from benchmark.mini.layout import DEPTH_UNITS, VOC
from benchmark.mini.render import IGNORE
from benchmark.mini.shapes import CLASSES
from probes.datasets.base import DatasetSpec, Lister
from probes.datasets.specs import coco, flickr, imagefolder, nyu, voc
from probes.registry import register_dataset

SPLIT = "probe-train / val of the mini world"


def _register(
    name: str, kind: Any, folder: str, list_samples: Lister, about: str, **more: Any
) -> DatasetSpec:
    spec = DatasetSpec(
        name=name,
        kind=kind,
        folder=folder,
        list_samples=list_samples,
        is_generated=True,
        about=f"mini world, {about}",
        **more,
    )
    return register_dataset(spec)


SEG = _register(
    "mini-seg",
    "segmentation",
    VOC,
    voc.list_samples,
    "semantic segmentation: ten classes of objects and background",
    classes=("background", *CLASSES),
    ignore_index=IGNORE,
    extra={"split": SPLIT},
)
DET = _register(
    "mini-det",
    "detection",
    "coco",
    coco.list_samples,
    "boxes and instance masks of ten classes",
    classes=CLASSES,
    annotations=coco.COCO.annotations,
    extra={"split": SPLIT},
)
DEPTH = _register(
    "mini-depth",
    "depth",
    "nyu",
    nyu.DEPTH.list_samples,
    "depth in metres",
    extra={
        "depth_scale": 1 / DEPTH_UNITS,
        "min_depth": 1e-3,
        "max_depth": 10.0,
        "crop": None,
        "split": SPLIT,
    },
)
AXES = {
    "encoding": "n = png / 127.5 - 1",
    "invalid": (0, 0, 0),
    "axes": "x right, y up, z towards the camera",
}
NORMAL = _register(
    "mini-normal",
    "normals",
    "nyu",
    nyu.NORMAL.list_samples,
    "surface normals",
    extra={**AXES, "split": SPLIT},
)
CLASS = _register(
    "mini-class",
    "classification",
    "imagefolder",
    imagefolder.list_samples,
    "one dominant object of ten classes",
    classes=imagefolder.classes,
    extra={"split": "class-train / class-val of the mini world"},
)
RETRIEVAL = _register(
    "mini-retrieval",
    "image-text",
    "flickr30k",
    flickr.FLICKR30K.list_samples,
    "five captions an image; train monitors a training",
    annotations=flickr.FLICKR30K.annotations,
    extra={"captions_per_image": 5, "split": "test"},
)

TASKS = (SEG, DET, DEPTH, NORMAL, CLASS, RETRIEVAL)
# the same labels in the shifted domain, to train and evaluate experts; not tasks of the benchmark
EXPERT = {
    spec.name: replace(spec, name=f"expert-{spec.name}", folder=f"expert/{spec.folder}")
    for spec in (SEG, DET, DEPTH, NORMAL)
}
