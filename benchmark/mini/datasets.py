"""The mini world's datasets: its own classes in the official layouts, listed by the official datasets' functions.

Folders are relative to the world's root, which stands in for ``--data-root``.
"""

from dataclasses import replace

from benchmark.mini.layout import DEPTH_UNITS
from benchmark.mini.shapes import CLASSES
from probes.datasets import coco, flickr30k, imagefolder, nyu_depth, nyu_normal, voc
from probes.datasets.base import DatasetSpec
from probes.registry import register_dataset

SPLIT = "probe-train / val of the mini world"

SEG = register_dataset(
    DatasetSpec(
        name="mini-seg",
        kind="segmentation",
        folder="VOCdevkit/VOC2012",
        list_samples=voc.list_samples,
        classes=("background", *CLASSES),
        ignore_index=255,
        extra={"split": SPLIT},
        about="mini world, semantic segmentation: ten classes of objects and background",
    )
)
DET = register_dataset(
    DatasetSpec(
        name="mini-det",
        kind="detection",
        folder="coco",
        list_samples=coco.list_samples,
        classes=CLASSES,
        annotations=coco.ANNOTATIONS,
        extra={"split": SPLIT},
        about="mini world, boxes and instance masks of ten classes",
    )
)
DEPTH = register_dataset(
    DatasetSpec(
        name="mini-depth",
        kind="depth",
        folder="nyu",
        list_samples=nyu_depth.list_samples,
        extra={"depth_scale": 1 / DEPTH_UNITS, "min_depth": 1e-3, "max_depth": 10.0, "crop": None, "split": SPLIT},
        about="mini world, depth in metres",
    )
)
NORMAL = register_dataset(
    DatasetSpec(
        name="mini-normal",
        kind="normals",
        folder="nyu",
        list_samples=nyu_normal.list_samples,
        extra={
            "encoding": "n = png / 127.5 - 1",
            "invalid": (0, 0, 0),
            "axes": "x right, y up, z towards the camera",
            "split": SPLIT,
        },
        about="mini world, surface normals",
    )
)
CLASS = register_dataset(
    DatasetSpec(
        name="mini-class",
        kind="classification",
        folder="imagefolder",
        list_samples=imagefolder.list_samples,
        classes=imagefolder.classes,
        extra={"split": "class-train / class-val of the mini world"},
        about="mini world, one dominant object of ten classes",
    )
)
RETRIEVAL = register_dataset(
    DatasetSpec(
        name="mini-retrieval",
        kind="image-text",
        folder="flickr30k",
        list_samples=flickr30k.list_samples,
        annotations=dict.fromkeys(("train", "val"), flickr30k.ANNOTATIONS[0]),
        extra={"captions_per_image": 5, "split": "test"},
        about="mini world, five captions an image; train is for watching a training",
    )
)

# the same truth in the shifted domain: what experts are trained on (train) and measured on (val); no tasks of the
# benchmark
EXPERT = {
    spec.name: replace(spec, name=f"expert-{spec.name}", folder=f"expert/{spec.folder}")
    for spec in (SEG, DET, DEPTH, NORMAL)
}
