"""Images with dense ground truth in the official layouts: COCO's instances, merged into one class
map, and folders of maps."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from cliptex_common.errors import UserError, report_malformed
from cliptex_common.images import UNKNOWN_CLASS, instance_mask, mask_error, read_instances

COCO = {
    "train": "annotations/instances_train2017.json",
    "val": "annotations/instances_val2017.json",
}
CLASSES = "classes.txt"
LabelledImage = tuple[Path, Callable[[], np.ndarray]]  # image file; reads its label


@dataclass(frozen=True)
class MapFolders:
    """Images ``FOLDER/images/SPLIT/STEM.jpg`` (or png) and maps ``FOLDER/MAPS/SPLIT/STEM.png``; of
    maps of classes also ``FOLDER/classes.txt``, a name on each line.

    Attributes:
        folder: FOLDER, in the data root.
        maps: MAPS.
        val: SPLIT of the validation images; that of the others is ``train``.
    """

    folder: str
    maps: str = "annotations"
    val: str = "val"

    def samples(
        self, root: Path, split: str, read: Callable[[Path], np.ndarray]
    ) -> list[LabelledImage]:
        """The samples of ``train`` or ``val``; ``read`` makes the label of a map's file.

        Raises:
            UserError: a folder is missing or has no images.
        """
        name = self.val if split == "val" else split
        folder = layout_folder(root, self.folder, f"{self.maps}/{name}")
        images = folder / "images" / name
        paths = sorted(path for path in images.glob("*") if path.suffix in (".jpg", ".png"))
        if not paths:
            raise UserError(f"no images in {images}")
        maps = folder / self.maps / name
        return [(path, partial(read, maps / f"{path.stem}.png")) for path in paths]

    def classes(self, root: Path) -> tuple[str, ...]:
        """Names of the classes by number. Raises ``UserError`` if their file is missing."""
        path = layout_folder(root, self.folder, CLASSES) / CLASSES
        return tuple(path.read_text(encoding="utf-8").strip().split("\n"))


def layout_folder(root: Path, name: str, content: str) -> Path:
    """``root/name``, or ``root`` itself, whichever has ``content``.

    Raises:
        UserError: neither has it.
    """
    for folder in (root / name, root):
        if (folder / content).exists():
            return folder
    raise UserError(
        f"{content} is missing in {root / name}; give a data root in the official layouts"
    )


def coco_samples(root: Path, split: str) -> tuple[tuple[str, ...], list[LabelledImage]]:
    """Class names (``background`` first) and samples of a split of ``root/coco``.

    Raises:
        UserError: the annotation file is missing or malformed, or lists no images.
    """
    folder = layout_folder(root, "coco", COCO[split])
    names, images = coco_instances(folder / COCO[split])
    return names, [
        (folder / f"{split}2017" / image["file_name"], partial(paint, image)) for image in images
    ]


def coco_instances(path: Path) -> tuple[tuple[str, ...], list[dict[str, Any]]]:
    """Class names (``background`` first) and images of a COCO instance file.

    Returns:
        the names, and a dict for each image: ``file_name``, ``height``, ``width`` and
        ``annotations``, whose ``category_id`` is the class number, 1 … (0 is the background).

    Raises:
        UserError: the file is malformed or lists no images.
    """
    categories, images = read_instances(path)
    numbers = {category: number for number, category in enumerate(sorted(categories), 1)}
    with report_malformed(f"{path} is not a COCO instance file"):
        for image in images.values():
            for annotation in image["annotations"]:
                size = image["height"], image["width"]
                if problem := mask_error(annotation["segmentation"], *size):
                    raise UserError(f"{path} annotation {annotation.get('id')} has {problem}")
                annotation["category_id"] = numbers[annotation["category_id"]]
    names = ("background", *(categories[category] for category in sorted(categories)))
    return names, list(images.values())


def paint(image: dict[str, Any]) -> np.ndarray:
    """Instances merged into one (H, W) uint8 class map, small ones over large ones; crowds: 255."""
    size = image["height"], image["width"]
    merged = np.zeros(size, np.uint8)
    for instance in sorted(image["annotations"], key=lambda instance: -instance.get("area", 0)):
        crowd = instance.get("iscrowd", 0)
        mask = instance_mask(instance["segmentation"], *size)
        merged[mask] = UNKNOWN_CLASS if crowd else instance["category_id"]
    return merged
