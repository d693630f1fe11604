"""Objects without their classes: boxes of PASCAL VOC and COCO, and masks of any map of classes."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from xml.etree import ElementTree

from cliptex_common.errors import report_malformed
from cliptex_common.images import read_instances
from probes.datasets.base import (
    DatasetSpec,
    Sample,
    Split,
    UnfitCopy,
    mirrored,
    read_lines,
    require_file,
    require_folder,
)
from probes.datasets.ground_truth import Objects
from probes.registry import register_dataset


def list_voc_objects(names: str, masks: str, root: Path, split: Split) -> list[Sample]:
    """``JPEGImages/NAME.jpg`` and ``Annotations/NAME.xml`` of a list in ``ImageSets``; with
    ``masks`` also ``SegmentationClass/NAME.png``."""
    if split == "train":
        return []
    require_folder(root, "JPEGImages")
    return [
        Sample(
            f"JPEGImages/{name}.jpg",
            Objects(
                read_boxes(require_file(root, f"Annotations/{name}.xml")),
                f"{masks}/{name}.png" if masks else "",
            ),
        )
        for name in read_lines(require_file(root, f"ImageSets/{names}.txt"))
    ]


def adapt(lists: str, spec: DatasetSpec, root: Path) -> DatasetSpec:
    """A copy for segmentation alone has no boxes."""
    for name in ("Annotations", f"ImageSets/{lists}.txt"):
        if not (root / name).exists():
            raise UnfitCopy(f"{spec.name} needs {name} in {root}; unpack all of VOCtrainval there")
    return spec


def read_boxes(path: Path) -> list[list[int]]:
    """The boxes of an annotation of VOC, whose pixels count from 1 and include both ends: left,
    top, right, bottom, of which the last two are excluded."""
    with report_malformed(f"{path} is no annotation file of PASCAL VOC"):
        try:
            boxes = ElementTree.parse(path).getroot().findall("object/bndbox")
        except ElementTree.ParseError as error:
            raise ValueError(str(error)) from error
        edges = [
            [int(float(str(box.findtext(name)))) for name in ("xmin", "ymin", "xmax", "ymax")]
            for box in boxes
        ]
    return [[left - 1, top - 1, right, bottom] for left, top, right, bottom in edges]


def list_coco_objects(root: Path, split: Split) -> list[Sample]:
    """The images of val that have a box, without those of crowds; edges are rounded."""
    if split == "train":
        return []
    path = require_file(root, "annotations/instances_val2017.json")
    require_folder(root, "val2017")
    samples = []
    with report_malformed(f"{path} is not a COCO annotation file"):
        for entry in read_instances(path)[1].values():
            boxes = [each["bbox"] for each in entry["annotations"] if not each.get("iscrowd")]
            edges = [[round(v) for v in (x, y, x + w, y + h)] for x, y, w, h in boxes]
            if edges:
                samples.append(Sample(f"val2017/{entry['file_name']}", Objects(edges)))
    return samples


def list_masks(root: Path, split: Split) -> list[Sample]:
    """``images/{train,val}`` and ``annotations/{train,val}``: 0 is no object, 255 unknown."""
    listed = mirrored("images/{part}", "annotations/{part}")(root, split)
    return [Sample(sample.image, Objects(mask=sample.target)) for sample in listed]


# the lists of TokenCut are VOC's trainval; of COCO it takes 20,000 images of train2014
for _name, _year, _lists, _masks, _images, _about in (
    ("voc07-objects", 2007, "Main/trainval", "", 5011, "boxes of trainval of PASCAL VOC 2007"),
    ("voc12-objects", 2012, "Main/trainval", "", 11540, "boxes of trainval of PASCAL VOC 2012"),
    (
        "voc-objects",
        2012,
        "Segmentation/val",
        "SegmentationClass",
        1449,
        "boxes and masks of objects of any class of PASCAL VOC 2012, its 1,449 images with masks",
    ),
):
    register_dataset(
        DatasetSpec(
            name=_name,
            kind="objects",
            folder=f"VOCdevkit/VOC{_year}",
            list_samples=partial(list_voc_objects, _lists, _masks),
            expected={"train": 0, "val": _images},
            adapt=partial(adapt, _lists),
            image_set="voc",
            about=f"{_about} (host.robots.ox.ac.uk/pascal/VOC)",
        )
    )
register_dataset(
    DatasetSpec(
        name="coco-objects",
        kind="objects",
        folder="coco",
        list_samples=list_coco_objects,
        expected={"train": 0},
        image_set="coco",
        about="boxes of objects of any class in COCO's val2017 (cocodataset.org)",
    )
)
register_dataset(
    DatasetSpec(
        name="object-masks",
        kind="objects",
        folder="object-masks",
        list_samples=list_masks,
        extra={"main_metric": "IoU"},
        about=(
            "your own masks: images/{train,val} and annotations/{train,val} with a map of classes"
            " for each, 0 no object, 255 unknown (place them with --data object-masks=DIR)"
        ),
    )
)
