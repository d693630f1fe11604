"""Datasets whose images have several labels: PASCAL VOC 2007 and COCO 2017."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path

from cliptex_common.errors import UserError, report_malformed
from cliptex_common.images import read_instances
from probes.datasets.base import (
    DatasetSpec,
    Sample,
    Split,
    read_lines,
    require_file,
    require_folder,
)
from probes.datasets.detection import CLASSES as COCO_CLASSES
from probes.datasets.ground_truth import LabelSet
from probes.registry import register_dataset

VOC_CLASSES = (
    *("aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow"),
    *("diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa"),
    *("train", "tvmonitor"),
)
VOC_PARTS = {"train": "trainval", "val": "test"}
VALUES = {"1": "present", "0": "unknown", "-1": "absent"}  # 0: all of its objects are difficult


def list_voc2007(root: Path, split: Split) -> list[Sample]:
    """The images of ``ImageSets/Main/{trainval,test}.txt``: lines ``000012 -1`` in
    ``ImageSets/Main/CLASS_{trainval,test}.txt``. Its devkit counts images of 0, whose objects are
    all difficult, neither as right nor as wrong."""
    part = VOC_PARTS[split]
    names = read_lines(require_file(root, f"ImageSets/Main/{part}.txt"))
    labels: dict[str, dict[str, list[int]]] = {name: defaultdict(list) for name in names}
    for number, subject in enumerate(VOC_CLASSES):
        path = require_file(root, f"ImageSets/Main/{subject}_{part}.txt")
        with report_malformed(f"{path} needs lines of an image and -1, 0 or 1"):
            values = dict(line.split() for line in read_lines(path))
            for name, value in values.items():
                labels[name][VALUES[value]].append(number)
        if len(values) < len(names):
            raise UserError(f"{path} has {len(values)} of {len(names)} images; get the file again")
    return [
        Sample(f"JPEGImages/{name}.jpg", LabelSet(each["present"], each["unknown"]))
        for name, each in labels.items()
    ]


register_dataset(
    DatasetSpec(
        name="voc2007-labels",
        kind="multi-label",
        folder="VOCdevkit/VOC2007",
        list_samples=list_voc2007,
        expected={"train": 5011, "val": 4952},
        classes=VOC_CLASSES,
        extra={"main_metric": "mAP_11"},
        image_set="voc",
        about=(
            "PASCAL VOC 2007, which of 20 classes an image shows: trainval and test"
            " (`data get voc2007-labels`)"
        ),
    )
)


def list_coco(root: Path, split: Split) -> list[Sample]:
    """Images of ``annotations/instances_{train,val}2017.json`` in its order. An image shows a class
    that has an object or a crowd there; those that show none are samples, too."""
    path, folder = require_file(root, f"annotations/instances_{split}2017.json"), f"{split}2017"
    require_folder(root, folder)
    categories, images = read_instances(path)
    numbers, samples = {name: i for i, name in enumerate(COCO_CLASSES)}, []
    with report_malformed(f"{path} is not a COCO annotation file of the 80 classes"):
        classes = {number: numbers[name] for number, name in categories.items()}
        for image in images.values():
            present = {classes[each["category_id"]] for each in image["annotations"]}
            samples.append(Sample(f"{folder}/{image['file_name']}", LabelSet(sorted(present))))
    return samples


register_dataset(
    DatasetSpec(
        name="coco-labels",
        kind="multi-label",
        folder="coco",
        list_samples=list_coco,
        expected={"train": 118287, "val": 5000},
        classes=COCO_CLASSES,
        image_set="coco",
        about="COCO 2017, which of 80 classes an image shows: the files of `coco`",
    )
)
