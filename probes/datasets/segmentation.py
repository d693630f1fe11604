"""Datasets with a class for each pixel: ADE20K, CamVid, Cityscapes, COCO-Stuff, PASCAL-Context,
PASCAL VOC."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path

from cliptex_common.errors import UserError
from probes.datasets.base import (
    DatasetSpec,
    Sample,
    Split,
    mirrored,
    mmlab_classes,
    read_lines,
    require_file,
    require_folder,
    walk,
)
from probes.registry import register_dataset

# MIT Scene Parsing Benchmark; the stored 0 means unlabelled
register_dataset(
    DatasetSpec(
        name="ade20k",
        kind="segmentation",
        folder="ade/ADEChallengeData2016",
        list_samples=mirrored(
            "images/{part}", "annotations/{part}", train="training", val="validation"
        ),
        expected={"train": 20210, "val": 2000},
        classes=partial(mmlab_classes, "mmseg.datasets", "ADE20KDataset"),
        label_offset=-1,
        about=(
            "ADE20K, 150 classes (ADEChallengeData2016.zip from"
            " data.csail.mit.edu/places/ADEchallenge)"
        ),
    )
)


# declared as a dataset of your own would be
register_dataset(
    DatasetSpec(
        name="camvid",
        kind="segmentation",
        folder="camvid",
        list_samples=mirrored("images/{part}", "annotations/{part}"),  # {part}: train or val
        classes=(
            *("sky", "building", "pole", "road", "pavement", "tree"),
            *("signsymbol", "fence", "car", "pedestrian", "bicyclist"),
        ),
        ignore_index=255,
        about=(
            "CamVid road scenes, 11 classes: images/{train,val}, annotations/{train,val} with"
            " labels 0-10, void 255"
        ),
    )
)


IMAGE, LABELS = "_leftImg8bit.png", "_gtFine_labelTrainIds.png"


def list_cityscapes(root: Path, split: Split) -> list[Sample]:
    """``leftImg8bit/{train,val}/CITY/NAME_leftImg8bit.png`` and
    ``gtFine/{train,val}/CITY/NAME_gtFine_labelTrainIds.png``, which ``csCreateTrainIdLabelImgs`` of
    the package cityscapesscripts makes of the annotations as they are downloaded."""
    images, labels = f"leftImg8bit/{split}", f"gtFine/{split}"
    names = [name[: -len(IMAGE)] for name in walk(root, images, (IMAGE.lower(),))]
    if not any(require_folder(root, labels).glob(f"*/*{LABELS}")):
        raise UserError(
            f"{root / labels} has no *{LABELS}; make them with csCreateTrainIdLabelImgs of the"
            " package cityscapesscripts"
        )
    return [Sample(f"{images}/{name}{IMAGE}", f"{labels}/{name}{LABELS}") for name in names]


# Cordts et al., CVPR 2016: street scenes of 50 cities, 2048 × 1024
register_dataset(
    DatasetSpec(
        name="cityscapes",
        kind="segmentation",
        folder="cityscapes",
        list_samples=list_cityscapes,
        expected={"train": 2975, "val": 500},
        classes=partial(mmlab_classes, "mmseg.datasets", "CityscapesDataset"),
        about=(
            "Cityscapes streets, 19 classes: leftImg8bit/ and gtFine/ with labelTrainIds"
            " (cityscapes-dataset.com, login; own terms)"
        ),
    )
)


# Caesar, Uijlings, Ferrari, CVPR 2018: things and stuff
register_dataset(
    DatasetSpec(
        name="coco-stuff",
        kind="segmentation",
        folder="coco_stuff164k",
        list_samples=mirrored(
            "images/{part}2017", "annotations/{part}2017", suffix="_labelTrainIds.png"
        ),
        expected={"train": 118287, "val": 5000},
        classes=partial(mmlab_classes, "mmseg.datasets", "COCOStuffDataset"),
        image_set="coco",
        about=(
            "COCO-Stuff 164k, 171 classes, in MMSegmentation's layout"
            " (github.com/nightrome/cocostuff)"
        ),
    )
)


def list_pascal_context(root: Path, split: Split) -> list[Sample]:
    """VOC 2010 in MMSegmentation's layout: ``JPEGImages/NAME.jpg``,
    ``SegmentationClassContext/NAME.png`` (0 background, 1 to 59 the classes) and
    ``ImageSets/SegmentationContext/{train,val}.txt``; MMSegmentation's
    ``tools/dataset_converters/pascal_context.py`` makes the label maps and lists of
    ``trainval_merged.json``."""
    require_folder(root, "JPEGImages")
    require_folder(root, "SegmentationClassContext")
    names = read_lines(require_file(root, f"ImageSets/SegmentationContext/{split}.txt"))
    return [
        Sample(f"JPEGImages/{name}.jpg", f"SegmentationClassContext/{name}.png") for name in names
    ]


# Mottaghi et al., CVPR 2014: the 59 most frequent classes, without or with background
for _classes, _class, _background in (
    (59, "PascalContextDataset59", "background ignored"),
    (60, "PascalContextDataset", "background is a class"),
):
    register_dataset(
        DatasetSpec(
            name=f"pascal-context-{_classes}",
            kind="segmentation",
            folder="VOCdevkit/VOC2010",
            list_samples=list_pascal_context,
            expected={"train": 4998, "val": 5105},
            classes=partial(mmlab_classes, "mmseg.datasets", _class),
            label_offset=_classes - 60,
            image_set="voc",
            about=(
                f"PASCAL-Context, {_classes} classes, {_background}: VOC 2010 with"
                " SegmentationClassContext/ (cs.stanford.edu/~roozbeh/pascal-context; mmseg's"
                " tools/dataset_converters/pascal_context.py)"
            ),
        )
    )


LISTS = "ImageSets/Segmentation"


def augmented(root: Path) -> bool:
    """Whether the copy has the 10,582-image train list and its label maps (mmseg's and DeepLab's
    layout)."""
    return (root / LISTS / "trainaug.txt").is_file() and (root / "SegmentationClassAug").is_dir()


def list_voc(root: Path, split: Split) -> list[Sample]:
    """The official lists; of train the augmented one (SBD) where the copy has it."""
    require_folder(root, "JPEGImages")
    require_folder(root, "SegmentationClass")
    names = official = read_lines(require_file(root, f"{LISTS}/{split}.txt"))
    if split == "train" and augmented(root):
        names = read_lines(require_file(root, f"{LISTS}/trainaug.txt"))
    # VOC's own label maps are finer than SBD's: they are kept for the images that have them
    suffixes = dict.fromkeys(names, "Aug") | dict.fromkeys(official, "")
    return [
        Sample(f"JPEGImages/{name}.jpg", f"SegmentationClass{suffixes[name]}/{name}.png")
        for name in names
    ]


def adapt(spec: DatasetSpec, root: Path) -> DatasetSpec:
    """With the augmented list the train split is another one, and so is the protocol."""
    if not augmented(root):
        return spec
    return replace(
        spec,
        expected={**spec.expected, "train": 10582},
        extra={**spec.extra, "train_list": "trainaug"},
    )


VOC = register_dataset(
    DatasetSpec(
        name="voc",
        kind="segmentation",
        folder="VOCdevkit/VOC2012",
        list_samples=list_voc,
        expected={"train": 1464, "val": 1449},
        classes=partial(mmlab_classes, "mmseg.datasets", "PascalVOCDataset"),
        ignore_index=255,
        extra={"train_list": "train"},
        adapt=adapt,
        image_set="voc",
        about=(
            "PASCAL VOC 2012 segmentation, 21 classes (VOCtrainval_11-May-2012.tar,"
            " host.robots.ox.ac.uk/pascal/VOC)"
        ),
    )
)
