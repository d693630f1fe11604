"""List the samples of official layouts: id lists, mirrored folders, ImageFolder.

Nothing is decoded here. Each function raises ``UserError`` naming a missing folder, list or
annotation file; ``probes.datasets.check`` looks at the single files.
"""

from __future__ import annotations

import io
import os
from collections.abc import Mapping, Sequence
from contextlib import redirect_stdout
from contextvars import ContextVar
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

from cliptex_common import files
from cliptex_common.errors import UserError
from probes.datasets.base import Lister, Sample, Split

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".ppm", ".tif", ".tiff")
# gets the links to folders that a lister leaves out, since it lists what is in them anyway
LEFT_OUT: ContextVar[set[str]] = ContextVar("LEFT_OUT")


def require_folder(root: Path, name: str) -> Path:
    """The folder ``root / name``. Raises ``UserError`` if it does not exist."""
    if not (path := Path(root) / name).is_dir():
        raise UserError(f"folder {name} is missing in {root}")
    return path


def require_file(root: Path, *names: str) -> Path:
    """The first of ``names`` that is a file in ``root``. Raises ``UserError`` if none is."""
    for name in names:
        if (path := Path(root) / name).is_file():
            return path
    raise UserError(f"file {' or '.join(names)} is missing in {root}")


def read_lines(path: Path) -> list[str]:
    """Stripped lines of a list file, without empty ones. Raises ``UserError`` if it has none."""
    try:
        lines = [line.strip() for line in files.read_text(path).splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read {path}: {error}") from error
    if not any(lines):
        raise UserError(f"list {path} is empty")
    return [line for line in lines if line]


def read_annotations(path: Path) -> Any:
    """Parsed JSON. Raises ``UserError`` with the position of the error if it is malformed."""
    try:
        return files.read_json(path)
    except (OSError, ValueError) as error:
        raise UserError(f"{path} is not valid JSON ({error}); get the file again") from error


def mmlab_classes(module: str, dataset: str, root: Path) -> tuple[str, ...]:
    """Class names of a dataset of MMSegmentation or MMDetection, for any ``root``. Importing those
    takes seconds: declare ``functools.partial(mmlab_classes, module, dataset)``."""
    with redirect_stdout(io.StringIO()):  # both print that an optional package is absent
        dataset_class = getattr(import_module(module), dataset)
    return tuple(name.strip() for name in dataset_class.METAINFO["classes"])


def walk(
    root: Path, name: str, suffixes: Sequence[str], listed: set[str] | None = None
) -> list[str]:
    """Files in the folder ``root / name``, nested or not, sorted; without hidden ones.

    Each real folder is read once. A link to a folder that holds this one, or is in it, is not
    followed.

    Args:
        listed: real paths of folders that are not read here, either; gets those that are.
    """
    top, paths = require_folder(root, name), []
    listed = set() if listed is None else listed
    others = {os.path.realpath(top), *listed}
    for directory, folders, names in os.walk(top, followlinks=True):
        real, is_top = os.path.realpath(directory), directory == str(top)
        is_inside = Path(directory).is_symlink() and any(_nested(real, each) for each in others)
        if not is_top and (real in listed or is_inside):
            folders.clear()
            LEFT_OUT.get(set()).add(directory)
            continue
        listed.add(real)
        below = Path(directory).relative_to(top).as_posix()
        prefix = "" if below == "." else f"{below}/"
        paths += [
            f"{prefix}{file_name}"
            for file_name in names
            if file_name.lower().endswith(tuple(suffixes)) and not file_name.startswith(".")
        ]
    return sorted(paths)


def _nested(one: str, other: str) -> bool:
    """Whether one of two real folders is, or is in, the other."""
    return os.path.commonpath([one, other]) in (one, other)


def mirrored(images: str, targets: str, suffix: str = ".png", **parts: str) -> Lister:
    """A lister of two folders with the same (perhaps nested) names: ``images/a/b.jpg`` and
    ``targets/a/b.png``.

    A label map without an image is listed too, so that the image is reported as missing.

    Args:
        images, targets: the folders, relative to the root; ``{part}`` in them becomes the split.
        suffix: what the names of label maps have in place of ``.jpg``.
        parts: split → its name in the folders, if that differs (``val="test"``).
    """
    return partial(_mirrored, images, targets, suffix, parts)


def _mirrored(
    images: str, targets: str, suffix: str, parts: Mapping[str, str], root: Path, split: Split
) -> list[Sample]:
    part = parts.get(split, split)
    images, targets = images.format(part=part), targets.format(part=part)
    names = walk(root, images, IMAGE_SUFFIXES)
    stems = {name.rpartition(".")[0] for name in names}
    image_suffix = names[0].rpartition(".")[2] if names else "jpg"
    labels = [label[: -len(suffix)] for label in walk(root, targets, (suffix.lower(),))]
    names += [f"{stem}.{image_suffix}" for stem in labels if stem not in stems]
    return [
        Sample(f"{images}/{name}", f"{targets}/{name.rpartition('.')[0]}{suffix}")
        for name in sorted(names)
    ]


def class_folders(root: Path, split_folder: str) -> list[str]:
    """Names of the folders in ``root / split_folder``, sorted: the classes of an ImageFolder.
    Links to one of them, or to a folder that holds them, are none."""
    folder = require_folder(root, split_folder)
    top, names = os.path.realpath(folder), dict[str, str]()
    for entry in sorted(folder.iterdir(), key=Path.is_symlink):  # links last
        if entry.is_dir() and entry.name[0] != ".":
            real = os.path.realpath(entry) if entry.is_symlink() else f"{top}/{entry.name}"
            if real in names or os.path.commonpath([real, top]) == real:
                LEFT_OUT.get(set()).add(str(entry))
            else:
                names[real] = entry.name
    if not names:
        raise UserError(
            f"{Path(root) / split_folder} has no class folders; expected"
            f" {split_folder}/<class>/<image>"
        )
    return sorted(names.values())


def image_folder(root: Path, split_folder: str, classes: Sequence[str]) -> list[Sample]:
    """``split_folder/<class>/…`` → samples whose target is the index of the folder's name in
    ``classes``."""
    index = {name: number for number, name in enumerate(classes)}
    samples, names = [], class_folders(root, split_folder)
    listed = {os.path.realpath(Path(root, split_folder, name)) for name in names}
    for name in names:
        if name not in index:
            raise UserError(
                f"{Path(root) / split_folder / name} is not one of the {len(classes)} known"
                " classes; remove the folder or put its training images beside the others"
            )
        class_folder = f"{split_folder}/{name}"
        if not (images := walk(root, class_folder, IMAGE_SUFFIXES, listed)):
            raise UserError(
                f"{Path(root) / class_folder} has no images; put some there, or remove the folder"
            )
        samples += [Sample(f"{class_folder}/{image}", index[name]) for image in images]
    return samples
