"""COCO 2017 detection and instance segmentation: 80 classes, evaluated on val2017."""

from pathlib import Path

from cliptex_common.images import read_instances
from probes.datasets.base import (
    DatasetSpec,
    Sample,
    Split,
    require_file,
    require_folder,
)
from probes.datasets.ground_truth import Boxes
from probes.registry import register_dataset

# by the order of their ids in COCO's files
CLASSES = (
    *("person", "bicycle", "car", "motorcycle", "airplane", "bus", "train", "truck", "boat"),
    *("traffic light", "fire hydrant", "stop sign", "parking meter", "bench", "bird", "cat", "dog"),
    *("horse", "sheep", "cow", "elephant", "bear", "zebra", "giraffe", "backpack", "umbrella"),
    *("handbag", "tie", "suitcase", "frisbee", "skis", "snowboard", "sports ball", "kite"),
    *("baseball bat", "baseball glove", "skateboard", "surfboard", "tennis racket", "bottle"),
    *("wine glass", "cup", "fork", "knife", "spoon", "bowl", "banana", "apple", "sandwich"),
    *("orange", "broccoli", "carrot", "hot dog", "pizza", "donut", "cake", "chair", "couch"),
    *("potted plant", "bed", "dining table", "toilet", "tv", "laptop", "mouse", "remote"),
    *("keyboard", "cell phone", "microwave", "oven", "toaster", "sink", "refrigerator", "book"),
    *("clock", "vase", "scissors", "teddy bear", "hair drier", "toothbrush"),
)


def list_samples(root: Path, split: Split) -> list[Sample]:
    """Images of ``instances_*.json`` in its order."""
    path, folder = require_file(root, COCO.annotations[split]), f"{split}2017"
    require_folder(root, folder)
    _, images = read_instances(path)
    return [
        Sample(f"{folder}/{image['file_name']}", Boxes(number)) for number, image in images.items()
    ]


COCO = register_dataset(
    DatasetSpec(
        name="coco",
        kind="detection",
        folder="coco",
        list_samples=list_samples,
        expected={"train": 118287, "val": 5000},
        classes=CLASSES,
        annotations={
            split: f"annotations/instances_{split}2017.json" for split in ("train", "val")
        },
        image_set="coco",
        about=(
            "COCO 2017 boxes and instance masks, 80 classes (train2017, val2017, annotations from"
            " cocodataset.org)"
        ),
    )
)
