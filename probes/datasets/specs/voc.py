"""PASCAL VOC 2012 segmentation: 21 classes with background; with the augmented train list (SBD)
where it is present."""

from dataclasses import replace
from functools import partial
from pathlib import Path

from probes.datasets.base import DatasetSpec, Sample, Split
from probes.datasets.layouts import mmlab_classes, read_lines, require_file, require_folder
from probes.registry import register_dataset

LISTS = "ImageSets/Segmentation"


def augmented(root: Path) -> bool:
    """Whether the copy has the 10,582-image train list and its label maps (mmseg's and DeepLab's
    layout)."""
    return (root / LISTS / "trainaug.txt").is_file() and (root / "SegmentationClassAug").is_dir()


def list_samples(root: Path, split: Split) -> list[Sample]:
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


register_dataset(
    DatasetSpec(
        name="voc",
        kind="segmentation",
        folder="VOCdevkit/VOC2012",
        list_samples=list_samples,
        expected={"train": 1464, "val": 1449},
        classes=partial(mmlab_classes, "mmseg.datasets", "PascalVOCDataset"),
        ignore_index=255,
        extra={"train_list": "train"},
        adapt=adapt,
        about=(
            "PASCAL VOC 2012 segmentation, 21 classes (VOCtrainval_11-May-2012.tar,"
            " host.robots.ox.ac.uk/pascal/VOC)"
        ),
    )
)
