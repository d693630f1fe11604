"""A user's own classification set: ``train/<class>/`` and ``val/<class>/``; classes are the sorted
folder names.

Readable names for prompts come from ``classnames.json`` (folder → name, or a list in folder order)
or ``wnid_to_name.txt`` (``<folder><tab><name>[, synonyms]``) in the root; WordNet ids of
ImageNet-1k are known without either.
"""

from pathlib import Path

from cliptex_common.errors import UserError
from probes.datasets.base import DatasetSpec, Sample, Split
from probes.datasets.layouts import class_folders, image_folder, read_annotations, read_lines
from probes.registry import register_dataset


def folder_names(root: Path) -> list[str]:
    """The classes: folders of ``train``, or of ``val`` for a copy that has nothing to train on."""
    return class_folders(root, "train" if (Path(root) / "train").is_dir() else "val")


def classes(root: Path) -> tuple[str, ...]:
    """Readable class names, in the order of ``folder_names``."""
    folders = folder_names(root)
    names = readable_names(Path(root), folders)
    if unnamed := [name for name in folders if not names.get(name)]:
        raise UserError(
            f"{root} names its classes but not {unnamed[0]!r}; add it to the file of names"
        )
    return tuple(names[name] for name in folders)


def readable_names(root: Path, folders: list[str]) -> dict[str, str]:
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
        from probes.datasets.specs import imagenet

        imagenet_names = dict(zip(imagenet.wnids(), imagenet.classes(root), strict=True))
        if imagenet_names.keys() >= set(folders):
            return imagenet_names
    return {name: name.replace("_", " ") for name in folders}


def list_samples(root: Path, split: Split) -> list[Sample]:
    return image_folder(root, split, folder_names(root))


register_dataset(
    DatasetSpec(
        name="imagefolder",
        kind="classification",
        folder="imagefolder",
        list_samples=list_samples,
        classes=classes,
        about=(
            "your own images: train/<class>/, val/<class>/ (place them with --data imagefolder=DIR)"
        ),
    )
)
