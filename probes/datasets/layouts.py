"""How official layouts list their samples: id lists, mirrored folders, ImageFolder.

Nothing is decoded here. Each function names what is missing (folder, list, annotation file) in a
``UserError``; whether the single files are there and readable is found out by
``probes.datasets.check``.
"""

from __future__ import annotations

import io
import os
from collections.abc import Mapping, Sequence
from contextlib import redirect_stdout
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

from common import files
from common.errors import UserError
from probes.datasets.base import Lister, Sample, Split

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".ppm", ".tif", ".tiff")


def folder(root: Path, name: str) -> Path:
    """``root / name``, which must be a folder; ``UserError`` names it if it is not."""
    if not (path := Path(root) / name).is_dir():
        raise UserError(f"folder {name} is missing in {root}")
    return path


def file(root: Path, *names: str) -> Path:
    """The first of ``names`` that is a file in ``root``; ``UserError`` names what was looked
    for."""
    for name in names:
        if (path := Path(root) / name).is_file():
            return path
    raise UserError(f"file {' or '.join(names)} is missing in {root}")


def read_lines(path: Path) -> list[str]:
    """Lines of a list file, stripped, empty ones left out. Raises ``UserError`` when there is none
    or it is no text."""
    try:
        lines = [line.strip() for line in files.read_text(path).splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read {path}: {error}") from error
    if not (lines := [line for line in lines if line]):
        raise UserError(f"list {path} is empty")
    return lines


def read_json(path: Path) -> Any:
    """Parsed JSON. Raises ``UserError`` with the place of the fault when it is broken."""
    try:
        return files.read_json(path)
    except (OSError, ValueError) as error:
        raise UserError(f"{path} is not valid JSON ({error}); get the file again") from error


def mmlab_classes(module: str, dataset: str, root: Path) -> tuple[str, ...]:
    """Class names of a dataset of MMSegmentation or MMDetection (of any ``root``). Importing those
    takes seconds: declare ``functools.partial(mmlab_classes, module, dataset)``, so that it is done
    when names are asked for."""
    from probes.runner import ops

    ops.install()
    with redirect_stdout(io.StringIO()):  # both print that an optional package is absent
        found = getattr(import_module(module), dataset)
    return tuple(name.strip() for name in found.METAINFO["classes"])


def walk(root: Path, name: str, suffixes: Sequence[str]) -> list[str]:
    """Files below the folder ``root / name`` (nested too), relative to it, sorted; hidden ones left
    out. Raises ``UserError`` for a link to a folder that ``must_not_lead_astray``, and for a name
    that is no text."""
    top, found = folder(root, name), []
    for directory, folders, names in os.walk(top, followlinks=True):
        below = Path(directory).relative_to(top).as_posix()
        prefix = "" if below == "." else f"{below}/"
        for each in folders:
            must_not_lead_astray(root, f"{name}/{prefix}{each}")
        found += [
            f"{prefix}{n}"
            for n in names
            if n.lower().endswith(tuple(suffixes)) and not n.startswith(".")
        ]
    for each in found:
        must_be_text(root, each)
    return sorted(found)


def must_be_text(root: Path, name: str) -> None:
    """Raises ``UserError`` for a file name that is not UTF-8: no list, hash or report can hold
    it."""
    try:
        name.encode()
    except UnicodeEncodeError:
        raise UserError(f"the name {name!a} in {root} is not UTF-8; rename it") from None


def must_not_lead_astray(root: Path, name: str, *, is_folder: bool = True) -> None:
    """Raises ``UserError`` for a link that leads out of the dataset, or, to a folder, to where
    images are listed anyway: they would be there twice, under another class. Only a folder directly
    in the root may be a link to anywhere."""
    path = os.path.join(root, name)  # noqa: PTH118 – a Path for each of a million files takes minutes
    if not os.path.islink(path):  # noqa: PTH114
        return
    target, whole, top = (
        Path(os.path.realpath(each)) for each in (path, root, Path(root, name.split("/")[0]))
    )
    if not (target.is_relative_to(whole) or target.is_relative_to(top)):
        raise UserError(
            f"{path} is a link out of the dataset, to {target}; put what it stands for in its place"
        )
    listed = [top, *(Path(os.path.realpath(Path(root, part))) for part in ("train", "val"))]
    if is_folder and any(
        target.is_relative_to(each) or each.is_relative_to(target) for each in listed
    ):
        raise UserError(
            f"{path} is a link to {target}, whose images are listed there already; remove it"
        )


def mirrored(images: str, targets: str, **parts: str) -> Lister:
    """What lists two folders with the same (perhaps nested) names: ``images/a/b.jpg`` and
    ``targets/a/b.png``.

    A label map without an image is listed too, with the image it should have: nothing is lost in
    silence.

    Args:
        images, targets: the folders, relative to the root; ``{part}`` in them becomes the split.
        parts: split → its name in the folders, where that is another (``val="test"``).
    """
    return partial(_mirrored, images, targets, parts)


def _mirrored(
    images: str, targets: str, parts: Mapping[str, str], root: Path, split: Split
) -> list[Sample]:
    images, targets = (each.format(part=parts.get(split, split)) for each in (images, targets))
    names = walk(root, images, IMAGE_SUFFIXES)
    stems = {name.rpartition(".")[0] for name in names}
    suffix = names[0].rpartition(".")[2] if names else "jpg"
    labels = [label.rpartition(".")[0] for label in walk(root, targets, (".png",))]
    names += [f"{stem}.{suffix}" for stem in labels if stem not in stems]
    return [
        Sample(f"{images}/{name}", f"{targets}/{name.rpartition('.')[0]}.png")
        for name in sorted(names)
    ]


def class_folders(root: Path, split_folder: str) -> list[str]:
    """Names of the folders in ``root / split_folder``, sorted: the classes of an ImageFolder."""
    names = [
        entry.name
        for entry in folder(root, split_folder).iterdir()
        if entry.is_dir() and entry.name[0] != "."
    ]
    if not names:
        raise UserError(
            f"{Path(root) / split_folder} has no class folders; expected"
            f" {split_folder}/<class>/<image>"
        )
    for name in names:
        must_be_text(root, name)
        must_not_lead_astray(root, f"{split_folder}/{name}")
    return sorted(names)


def image_folder(root: Path, split_folder: str, classes: Sequence[str]) -> list[Sample]:
    """``split_folder/<class>/…`` → samples whose target is the index of the folder's name in
    ``classes``."""
    index = {name: number for number, name in enumerate(classes)}
    samples = []
    for name in class_folders(root, split_folder):
        if name not in index:
            raise UserError(
                f"{Path(root) / split_folder / name} is not one of the {len(classes)} known"
                " classes; remove the folder or put its training images beside the others"
            )
        place = f"{split_folder}/{name}"
        if not (images := walk(root, place, IMAGE_SUFFIXES)):
            raise UserError(
                f"{Path(root) / place} has no images; put some there, or remove the folder"
            )
        samples += [Sample(f"{place}/{image}", index[name]) for image in images]
    return samples
