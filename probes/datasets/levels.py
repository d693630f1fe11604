"""Datasets of low- and mid-level tasks: any images, of which targets are computed; BSDS500; and
others' ground truth seen as something else."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from cliptex_common.errors import UserError
from probes.datasets.base import (
    DatasetSpec,
    Sample,
    Split,
    UnfitCopy,
    mirrored,
    walk_images,
)
from probes.datasets.depth import DEPTH, EXPECTED, scenes
from probes.datasets.segmentation import VOC
from probes.registry import register_dataset

# folders of train and val
LAYOUTS = (
    *(("train", "val"), ("images/train", "images/val"), ("images/train", "images/test")),
    *(("images/training", "images/validation"), ("train2017", "val2017")),
)


def list_unlabelled(root: Path, split: Split) -> list[Sample]:
    """All images of the first of ``LAYOUTS`` that the folder has; what is computed of an image has
    its path as target."""
    for folders in LAYOUTS:
        if all((root / folder).is_dir() for folder in folders):
            folder = folders[split == "val"]
            names = [f"{folder}/{name}" for name in walk_images(root, folder)]
            return [Sample(name, name) for name in names]
    pairs = ", ".join(" and ".join(folders) for folders in LAYOUTS)
    raise UserError(f"{root} has no folders with images of train and val: {pairs}")


for _kind, _what in (("corners", "where corners are"), ("orientation", "how edges are turned")):
    register_dataset(
        DatasetSpec(
            name=_kind,
            kind=_kind,
            folder=_kind,
            list_samples=list_unlabelled,
            about=(
                f"{_what}, computed of any images: train/ and val/, also below images/, or COCO's"
                f" folders (place them with --data {_kind}=DIR)"
            ),
        )
    )

register_dataset(
    replace(
        DEPTH,
        name="nyu-occlusion",
        kind="occlusion-edges",
        about="NYU Depth v2: where one surface ends in front of another, computed of its depth",
        module="",
    )
)

register_dataset(
    replace(
        VOC,
        name="voc-foreground",
        kind="foreground",
        extra={**VOC.extra, "background": (0,)},
        about="PASCAL VOC 2012: objects of any of its 20 classes against background",
        module="",
    )
)


def adapt_nyu_40(spec: DatasetSpec, root: Path) -> DatasetSpec:
    """A copy for depth has no labels of classes."""
    if not (root / "semseg").is_dir():
        raise UnfitCopy(
            f"{spec.name} needs semseg/{{train,test}} in {root}, maps of its 40 classes"
        )
    return spec


# Gupta, Arbeláez, Malik, CVPR 2013
register_dataset(
    DatasetSpec(
        name="nyu-40",
        kind="segmentation",
        folder="nyu",
        list_samples=mirrored("images/{part}", "semseg/{part}", val="test"),
        adapt=adapt_nyu_40,
        expected=EXPECTED,
        classes=(
            *("wall", "floor", "cabinet", "bed", "chair", "sofa", "table", "door", "window"),
            *("bookshelf", "picture", "counter", "blinds", "desk", "shelves", "curtain"),
            *("dresser", "pillow", "mirror", "floor mat", "clothes", "ceiling", "books"),
            *("refridgerator", "television", "paper", "towel", "shower curtain", "box"),
            *("whiteboard", "person", "night stand", "toilet", "sink", "lamp", "bathtub"),
            *("bag", "otherstructure", "otherfurniture", "otherprop"),
        ),
        units=scenes,
        image_set="nyu",
        about=(
            "NYU Depth v2, 40 classes, 795 train / 654 test: nyu/semseg/{train,test} with labels"
            " 0-39, void 255"
        ),
    )
)


def list_bsds(root: Path, split: Split) -> list[Sample]:
    """``images/PART/N.jpg`` and ``groundTruth/PART/N.mat``; as published, trained on train and val
    and scored on test."""
    lister = mirrored("images/{part}", "groundTruth/{part}", ".mat", train="val", val="test")
    samples = lister(root, split)
    if split == "train":
        samples = mirrored("images/train", "groundTruth/train", ".mat")(root, split) + samples
    return samples


# Arbeláez, Maire, Fowlkes, Malik, PAMI 2011
register_dataset(
    DatasetSpec(
        name="bsds500",
        kind="boundaries",
        folder="BSR/BSDS500/data",
        other_folders=("BSDS500/data",),
        list_samples=list_bsds,
        expected={"train": 300, "val": 200},
        about=(
            "BSDS500, boundaries that four to nine people marked, 300 train and val / 200 test"
            " (BSR_bsds500.tgz, eecs.berkeley.edu/Research/Projects/CS/vision/grouping)"
        ),
    )
)
