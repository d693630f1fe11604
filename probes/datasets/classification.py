"""Datasets with a class for each image: a user's own folders, ImageNet-1k, Places365."""

from __future__ import annotations

from pathlib import Path
from runpy import run_path

from cliptex_common.errors import UserError, report_malformed
from cliptex_common.files import package_file
from probes.datasets.base import (
    DatasetSpec,
    Sample,
    Split,
    class_folders,
    image_folder,
    read_annotations,
    read_lines,
    require_file,
    require_folder,
)
from probes.registry import register_dataset


def folder_names(root: Path) -> list[str]:
    """The classes: folders of ``train``, or of ``val`` for a copy that has nothing to train on."""
    return class_folders(root, "train" if (Path(root) / "train").is_dir() else "val")


def folder_classes(root: Path) -> tuple[str, ...]:
    """Readable class names, in the order of ``folder_names``."""
    folders = folder_names(root)
    names = readable_names(Path(root), folders)
    if unnamed := [name for name in folders if not names.get(name)]:
        raise UserError(
            f"{root} names its classes but not {unnamed[0]!r}; add it to the file of names"
        )
    return tuple(names[name] for name in folders)


def readable_names(root: Path, folders: list[str]) -> dict[str, str]:
    """Folder → name for prompts: from ``classnames.json`` (folder → name, or a list in folder
    order) or ``wnid_to_name.txt`` (``<folder><tab><name>[, synonyms]``) in the root; WordNet ids of
    ImageNet-1k are known without either."""
    if (path := root / "classnames.json").is_file():
        names = read_annotations(path)
        if isinstance(names, list) and len(names) == len(folders):
            names = dict(zip(folders, names, strict=True))
        if not isinstance(names, dict):
            raise UserError(
                f"{path} must map {len(folders)} folders to names, or list as many names"
            )
        return {str(name): str(value) for name, value in names.items()}
    if (path := root / "wnid_to_name.txt").is_file():
        pairs = (line.partition("\t") for line in read_lines(path))
        return {name: names.split(",")[0].strip() for name, _, names in pairs}
    if all(len(name) == 9 and name[0] == "n" and name[1:].isdecimal() for name in folders):
        imagenet_names = dict(zip(wnids(), imagenet_classes(root), strict=True))
        if imagenet_names.keys() >= set(folders):
            return imagenet_names
    return {name: name.replace("_", " ") for name in folders}


def list_imagefolder(root: Path, split: Split) -> list[Sample]:
    return image_folder(root, split, folder_names(root))


# ``train/<class>/`` and ``val/<class>/``; classes are the sorted folder names
register_dataset(
    DatasetSpec(
        name="imagefolder",
        kind="classification",
        folder="imagefolder",
        list_samples=list_imagefolder,
        classes=folder_classes,
        about=(
            "your own images: train/<class>/, val/<class>/ (place them with --data imagefolder=DIR)"
        ),
    )
)


def wnids() -> tuple[str, ...]:
    """The 1000 WordNet ids, sorted: the usual class order."""
    path = package_file("timm", "data", "_info", "imagenet_synsets.txt")
    return tuple(path.read_text(encoding="utf-8").splitlines())


def imagenet_classes(root: Path) -> tuple[str, ...]:
    """Readable names in the order of ``wnids()``, as cleaned up for prompts by the authors of CLIP
    (from open_clip)."""
    path = package_file("open_clip", "zero_shot_metadata.py")  # the package is slow to import
    return tuple(run_path(str(path))["IMAGENET_CLASSNAMES"])


def list_imagenet(root: Path, split: Split) -> list[Sample]:
    """Of folders (``train/<wnid>/``, ``val/<wnid>/``), or of a flat ``val/``: lines
    ``ILSVRC2012_val_00000001.JPEG 65`` in ``meta/<split>.txt``."""
    if any(entry.is_dir() for entry in require_folder(root, split).iterdir()):
        return image_folder(root, split, wnids())
    path = require_file(root, f"meta/{split}.txt")
    with report_malformed(f"{path} needs lines of a file and its class, 0 to 999"):
        pairs = [line.rsplit(" ", 1) for line in read_lines(path)]
        return [Sample(f"{split}/{name}", int(label)) for name, label in pairs]


register_dataset(
    DatasetSpec(
        name="imagenet",
        kind="classification",
        folder="imagenet",
        list_samples=list_imagenet,
        expected={"train": 1281167, "val": 50000},
        classes=imagenet_classes,
        image_set="imagenet",
        about=(
            "ImageNet-1k, ILSVRC 2012: train/<wnid>, val/<wnid> or flat val with meta/val.txt"
            " (image-net.org)"
        ),
    )
)


def scene_classes(root: Path) -> tuple[str, ...]:
    return tuple(name.replace("_", " ").replace("-", " ") for name in folder_names(root))


# in its 'easy directory' form: ``train/<scene>/`` and ``val/<scene>/``
register_dataset(
    DatasetSpec(
        name="places365",
        kind="classification",
        folder="places365",
        list_samples=list_imagefolder,
        expected={"train": 1803460, "val": 36500},
        classes=scene_classes,
        about=(
            "Places365-Standard, 365 scenes, 256 px (places365standard_easyformat.tar from"
            " places2.csail.mit.edu)"
        ),
    )
)
