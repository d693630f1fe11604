"""Other test sets for what was trained on ImageNet-1k (``imagenet``): shifts (ImageNet-V2, -A, -R,
-Sketch, ObjectNet), other labels (-ReaL), corruptions (-C), images of unknown classes.

Of a set with fewer classes only the scores of its own count, as DINOv2's ``LinearPostprocessor``
masks them; ``imagenet-val-a`` … are the images of ImageNet's val of these classes, to compare
with."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

from cliptex_common.errors import UserError
from cliptex_common.files import package_file
from probes.datasets import classification
from probes.datasets.base import (
    IMAGE_SUFFIXES,
    DatasetSpec,
    Sample,
    Split,
    UnfitCopy,
    class_folders,
    read_annotations,
    read_lines,
    require_folder,
    walk_images,
)
from probes.datasets.ground_truth import ImageSet
from probes.image_level.settings import ALEXNET_ERRORS
from probes.registry import register_dataset


def list_samples(root: Path, split: Split) -> list[Sample]:
    """The images of all sets, of no class of ImageNet, named ``near/SET`` (SSB-hard, NINCO …)
    or ``far/SET`` (iNaturalist, Textures, OpenImage-O …)::

    imagenet-ood/near/SET/…/*.jpg   a folder of images, nested or not
    imagenet-ood/far/SET.txt        or a list: a path from imagenet-ood on each line, perhaps
                                    followed by a number, as in OpenOOD's lists
    """
    samples = []
    for distance in ("near", "far"):
        folder = root / distance
        for path in sorted(folder.iterdir()) if folder.is_dir() else ():
            name = f"{distance}/{path.stem}"
            if path.is_dir():
                images = [f"{name}/{image}" for image in walk_images(root, name)]
            elif path.suffix == ".txt":
                images = [_path(line) for line in read_lines(path)]
                if absent := next((each for each in images if not (root / each).is_file()), None):
                    raise UserError(f"{path} names {absent!r}, which is not in {root}")
            else:
                continue
            samples += [Sample(image, ImageSet(name)) for image in images]
    if not samples:
        raise UserError(f"{root} has no sets; expected near/SET/, far/SET/ or lists near/SET.txt")
    return samples


def _path(line: str) -> str:
    """The path of a line, without a number that follows it."""
    path, _, number = line.rpartition(" ")
    return path if path and number.lstrip("-").isdecimal() else line


register_dataset(
    DatasetSpec(
        name="imagenet-ood",
        kind="unknown-images",
        folder="imagenet-ood",
        list_samples=list_samples,
        trained_on="imagenet",
        image_set="imagenet",  # ImageNet's val is what is known
        about=(
            "images of no class of ImageNet: near/SET/, far/SET/, or lists of them near/SET.txt"
            " (OpenOOD: SSB-hard, NINCO; iNaturalist, Textures, OpenImage-O)"
        ),
    )
)


Groups = tuple[tuple[int, ...], ...]  # of each class the classes of ImageNet that stand for it
LEVELS = range(1, 6)  # of a corruption


def of_timm(name: str) -> Path:
    """A file about ImageNet in timm's package."""
    return package_file("timm", "data", "_info", name)


def indices(name: str) -> Groups:
    """The classes of ImageNet that a set has, in the order of their WordNet ids."""
    lines = of_timm(f"{name}_indices.txt").read_text(encoding="utf-8").split()
    return tuple((index,) for index in sorted(map(int, lines)))


def folders_of(root: Path, folders: Mapping[str, int], below: str = "") -> list[Sample]:
    """Samples of class folders, whose names have these classes; other folders are left out."""
    prefix = f"{below}/" if below else ""
    return [
        Sample(f"{prefix}{name}/{image}", folders[name])
        for name in class_folders(root, below or ".")
        if name in folders
        for image in walk_images(root, f"{prefix}{name}")
    ]


@dataclass(frozen=True)
class Shift:
    """A set in its authors' layout::

        imagenetv2-matched-frequency-format-val/0 … 999/*.jpeg
        imagenet-a, imagenet-r: <wnid>/*.jpg      sketch: <wnid>/*.JPEG
        objectnet-1.0/images/<class>/*.png

    Attributes:
        folders: names of its folder.
        below: folder of the class folders in it, if it is there.
        groups: see ``Groups``; empty for all classes of ImageNet.
        names: of its class folders, if they are not WordNet ids; those of groups are readable.
        border: see ``DatasetSpec.transfer``.
    """

    folders: Sequence[str]
    below: str = ""
    groups: Groups = ()
    names: Sequence[str] = ()
    border: int = 0

    def list_samples(self, root: Path, split: Split) -> list[Sample]:
        """The images of its class folders."""
        wnids = classification.wnids()
        names = self.names or [wnids[index] for index, *_ in self.groups] or wnids
        below = self.below if (root / self.below).is_dir() else ""
        return folders_of(root, {name: index for index, name in enumerate(names)}, below)

    def classes(self, root: Path) -> tuple[str, ...]:
        """Readable names."""
        names = classification.imagenet_classes(root)
        if self.names and self.groups:
            return tuple(name.replace("_", " ") for name in self.names)
        return tuple(names[index] for index, *_ in self.groups) or names

    @property
    def transfer(self) -> dict[str, Any]:
        """See ``DatasetSpec.transfer``."""
        return {
            **({"classes": self.groups} if self.groups else {}),
            **({"border": self.border} if self.border else {}),
        }


OBJECTNET: Mapping[str, list[int]] = json.loads(
    Path(__file__).with_name("objectnet.json").read_text(encoding="utf-8")
)
# by the names of their webdatasets
SHIFTS = {
    "imagenetv2": Shift(
        ("imagenetv2-matched-frequency-format-val", "imagenetv2"), names=[*map(str, range(1000))]
    ),
    "imagenet-a": Shift(("imagenet-a",), groups=indices("imagenet_a")),
    "imagenet-r": Shift(("imagenet-r",), groups=indices("imagenet_r")),
    "imagenet_sketch": Shift(("sketch", "ImageNet-Sketch", "imagenet-sketch"), "sketch"),
    # 113 classes stand for 125 of ImageNet; the highest score of those counts. The red border of
    # its images is cut off, as in wise-ft
    "objectnet": Shift(
        ("objectnet-1.0", "objectnet"),
        "images",
        tuple(map(tuple, OBJECTNET.values())),
        tuple(OBJECTNET),
        border=2,
    ),
}


def as_shift(spec: DatasetSpec) -> DatasetSpec:
    """A webdataset, in its authors' layout as well, and scored with what was trained on ImageNet,
    if it is one of ``SHIFTS``."""
    if spec.name not in SHIFTS:
        return spec
    shift, webdataset_classes = SHIFTS[spec.name], spec.classes
    assert callable(webdataset_classes)

    def list_samples(root: Path, split: Split) -> list[Sample]:
        lister = spec.list_samples if _is_webdataset(root) else shift.list_samples
        return lister(root, split)

    def classes(root: Path) -> tuple[str, ...]:
        return (webdataset_classes if _is_webdataset(root) else shift.classes)(root)

    return replace(
        spec,
        list_samples=list_samples,
        classes=classes,
        other_folders=(*spec.other_folders, *shift.folders),
        trained_on="imagenet",
        same_classes=not shift.groups,
        transfer=shift.transfer,
        about=f"{spec.about}, or its authors' {shift.folders[0]}",
    )


def _is_webdataset(root: Path) -> bool:
    return (root / "test").is_dir()


def list_group_images(groups: Groups, root: Path, split: Split) -> list[Sample]:
    """The images of ImageNet's val that are of some classes."""
    numbers = {index: number for number, group in enumerate(groups) for index in group}
    return [
        replace(sample, target=numbers[sample.target])
        for sample in classification.list_imagenet(root, split)
        if sample.target in numbers
    ]


def list_real(root: Path, split: Split) -> list[Sample]:
    """The images of ImageNet's val with all labels that fit them (Beyer et al. 2020); those that
    none fits are left out."""
    labels = read_annotations(of_timm("imagenet_real_labels.json"))
    samples = []
    for sample in classification.list_imagenet(root, split):
        if targets := labels[official_number(root / sample.image) - 1]:
            samples.append(replace(sample, target=targets))
    return samples


def official_number(image: Path) -> int:
    """The number of an image of ImageNet's val, from 1. Raises ``UnfitCopy`` if it is not named
    by it."""
    if match := re.match(r"ILSVRC2012_val_000(\d{5})(?!\d)", image.name):
        return int(match[1])
    raise UnfitCopy(f"{image}: ImageNet-ReaL needs the official names (ILSVRC2012_val_00000001)")


def require_official_names(spec: DatasetSpec, root: Path) -> DatasetSpec:
    """The spec. Raises as ``official_number`` for the first image of val."""
    for image in chain(root.glob("val/*.*"), root.glob("val/*/*.*")):
        if image.suffix.lower() in IMAGE_SUFFIXES:
            official_number(image)
            break
    return spec


def list_corrupted(root: Path, split: Split) -> list[Sample]:
    """The images of ImageNet-C (``<corruption>/1 … 5/<wnid>/*.JPEG``), of the corruptions that the
    copy has; a sample's group is the number of its corruption and level."""
    folders = {wnid: index for index, wnid in enumerate(classification.wnids())}
    samples = []
    for number, corruption in enumerate(ALEXNET_ERRORS):  # mCE has the same names in this order
        if not (root / corruption).is_dir():
            continue
        for level in LEVELS:
            require_folder(root, f"{corruption}/{level}")
            group = number * len(LEVELS) + level - 1
            images = folders_of(root, folders, f"{corruption}/{level}")
            samples += [replace(sample, group=group) for sample in images]
    if not samples:
        raise UserError(f"{root} has none of the corruptions {', '.join(ALEXNET_ERRORS)}")
    return samples


of_imagenet = partial(
    DatasetSpec, kind="classification", trained_on="imagenet", image_set="imagenet"
)
for _name, _set in (("a", "imagenet-a"), ("r", "imagenet-r"), ("objectnet", "objectnet")):
    _shift = SHIFTS[_set]
    register_dataset(
        of_imagenet(
            f"imagenet-val-{_name}",
            folder="imagenet",
            list_samples=partial(list_group_images, _shift.groups),
            expected={"val": 50 * sum(map(len, _shift.groups))},
            classes=_shift.classes,
            transfer={"classes": _shift.groups},
            about=f"ImageNet's val, the images of the classes of {_set}, to compare it with",
        )
    )
register_dataset(
    of_imagenet(
        "imagenet-real",
        folder="imagenet",
        list_samples=list_real,
        expected={"val": 46837},
        classes=classification.imagenet_classes,
        adapt=require_official_names,
        about="ImageNet's val with the labels of ImageNet-ReaL, which come with timm",
    )
)
register_dataset(
    of_imagenet(
        "imagenet-c",
        folder="imagenet-c",
        list_samples=list_corrupted,
        expected={"val": 50000 * len(LEVELS) * len(ALEXNET_ERRORS)},
        classes=classification.imagenet_classes,
        extra={"main_metric": "mCE"},
        transfer={"squash": True},  # not resized where the backbone takes 224 px
        about="ImageNet-C (zenodo.org/records/2235448): CORRUPTION/{1..5}/<wnid>, 15 corruptions",
    )
)
