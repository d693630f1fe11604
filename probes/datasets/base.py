"""A dataset: an official layout on disk, declared in one file and registered once; its shares of
train, equal for all backbones, smaller ones inside larger ones; and what lists the samples of
layouts: id lists, mirrored folders, ImageFolder.

Nothing is decoded here. What lists raises ``UserError`` naming a missing folder, list or annotation
file; ``probes.datasets.check`` looks at the single files.
"""

from __future__ import annotations

import io
import os
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from contextlib import redirect_stdout
from contextvars import ContextVar
from dataclasses import dataclass, field, fields, replace
from functools import cached_property, partial
from importlib import import_module
from pathlib import Path, PurePath
from typing import Any, Literal

from cliptex_common import files
from cliptex_common.errors import UserError
from cliptex_common.files import content_key
from cliptex_common.images import IMAGE_ERRORS, open_image
from cliptex_common.registry import Registry, instance_of
from probes.features.files import content_hashes

Split = Literal["train", "val"]
Lister = Callable[[Path, Split], list["Sample"]]


class Unreadable(Exception):
    """One sample cannot be used; the message says why."""


class UnfitCopy(UserError):
    """A copy lacks what one of the datasets in its folder needs."""


@dataclass(frozen=True)
class Sample:
    """One image of a dataset and its ground truth.

    Attributes:
        image: path of the image, relative to the dataset's root, with forward slashes.
        target: its ground truth. Of dense tasks the path of the map, relative likewise; of
            classification the index of the class, or a list of all that are right; of other kinds
            an object of the kind's class (``probes.datasets.ground_truth.KINDS``).
        group: number of its group (a region of the world), where scores are by group.
    """

    image: str
    target: Any = None
    group: int | None = None


@dataclass(frozen=True)
class DatasetSpec:
    """A dataset in its official layout.

    Attributes:
        name: what users call it (``voc``, ``nyu-depth`` …); the first half of a task's name.
        kind: what its ground truth is: a family of dense tasks (``probes.dense.tasks``), or one of
            ``probes.datasets.ground_truth.KINDS``.
        folder: under ``--data-root`` (OpenMMLab's tree), e.g. ``VOCdevkit/VOC2012``.
        other_folders: other names of that folder.
        list_samples: (root, split) → samples in a stable order. Raises ``UserError`` naming what is
            missing.
        expected: official number of samples of each split; a dataset with fewer runs only with
            ``--partial``. 0 for a split that it does not have; empty if there are no official
            numbers.
        allows_subsets: a copy with fewer samples runs without ``--partial``, as a partial one.
        classes: class names, by index; empty for regression and image-text. May be a function of
            the root, if the copy names its classes (ImageFolder) or importing the names is slow
            (``mmlab_classes``).
        ignore_index: label value that is not scored (segmentation). 255 in place of a stored value
            that ``label_offset`` takes below the classes: it is ignored anyway, and is the number
            of a class after the offset.
        label_offset: added to the stored label (ADE20K: -1; its stored 0 is 'unlabelled' and
            becomes ``ignore_index``).
        annotations: split → annotation file relative to the root (detection).
        extra: the dataset's part of the protocol: depth range in metres and file scale, evaluation
            crop, main metric if it is not the probe's (``main_metric``), prompts (``templates``,
            ``{c}`` for the class) …; part of a task's identity.
        adapt: (spec, root) → the spec of the copy at ``root``, where copies differ (VOC with or
            without the augmented train list); ``prepare`` applies it. May raise ``UnfitCopy``.
        units: root → image → name of what it was sampled with (a scene), where images are not
            independent; reports resample these. Images that are not in it count on their own.
        image_set: name of the images of which this dataset has all or some, and other datasets
            have some, too; '' for images of its own. Reports resample what has one file name (or
            name of a unit) in all datasets of a set alike.
        is_generated: the suite that uses it generates it; ``data check`` does not look for it.
        trained_on: name of the dataset whose train split the probes of this one are trained on; ''
            for its own. This one has ``val`` only.
        same_classes: its classes are those of ``trained_on`` in their order, under other names.
        transfer: what such tasks do differently here, part of their identity: ``classes``, of each
            class the indices of those of ``trained_on`` that stand for it (the highest score
            counts; classes that stand for none are left out; without it, the classes of both are
            the same, see ``same_classes``), ``border``, so many pixels that are cut off at each
            side of an image, and ``squash``, images are resized without a crop.
        about: one line for ``list``: what it is, where to get it.
        module: that registers it, which configs import; ``register_dataset`` sets it.
    """

    name: str
    kind: str
    folder: str
    list_samples: Lister
    expected: Mapping[str, int] = field(default_factory=dict)
    classes: tuple[str, ...] | Callable[[Path], tuple[str, ...]] = ()
    ignore_index: int = 255
    label_offset: int = 0
    annotations: Mapping[str, str] = field(default_factory=dict)
    extra: Mapping[str, Any] = field(default_factory=dict)
    adapt: Callable[[DatasetSpec, Path], DatasetSpec] | None = None
    units: Callable[[Path], Mapping[str, str]] | None = None
    image_set: str = ""
    is_generated: bool = False
    other_folders: tuple[str, ...] = ()
    allows_subsets: bool = False
    trained_on: str = ""
    same_classes: bool = False
    transfer: Mapping[str, Any] = field(default_factory=dict)
    about: str = ""
    module: str = ""

    def __post_init__(self) -> None:
        if 0 <= self.ignore_index < -self.label_offset:
            object.__setattr__(self, "ignore_index", 255)

    def at(self, root: Path) -> DatasetSpec:
        """The spec of the copy at ``root``."""
        return self.adapt(self, root) if self.adapt else self

    def class_names(self, root: Path) -> tuple[str, ...]:
        """Names of the classes of the copy at ``root``."""
        return self.classes(root) if callable(self.classes) else self.classes


DATASETS: Registry[DatasetSpec] = Registry(
    "dataset", "datasets", instance_of(DatasetSpec), ("probes.catalog", "probes.experts")
)


@dataclass(frozen=True)
class PreparedDataset:
    """A checked dataset on this disk: what a probe gets.

    Attributes:
        name: of the dataset.
        root: its folder.
        samples: split → usable samples, in the official order.
        skipped: (relative path, reason) of each sample that cannot be read.
        fingerprint: hash of names and content of all samples used.
        partial: whether samples of the official dataset are missing (then part of the protocol).
        notes: what a reader of its scores should know, one line each.
        full_train: all of train, if ``samples`` has a share of it (see ``with_share``): its
            features are encoded (``encoded``) and cached for all shares.
        train_indices: of that share in ``full_train``.
        trained_on: the dataset that probes are trained on, where it is another one; its name is
            ``spec.trained_on``.
    """

    name: str
    root: Path
    samples: Mapping[str, list[Sample]]
    skipped: tuple[tuple[str, str], ...] = ()
    fingerprint: str = ""
    partial: bool = False
    notes: tuple[str, ...] = ()
    full_train: tuple[Sample, ...] = ()
    train_indices: tuple[int, ...] = ()
    trained_on: PreparedDataset | None = None

    @cached_property
    def spec(self) -> DatasetSpec:
        """The declaration of this copy, looked up by name: it may hold functions, which cannot
        travel to the process that probes."""
        return DATASETS.find(self.name).at(self.root)

    def __getstate__(self) -> dict[str, Any]:
        return {each.name: getattr(self, each.name) for each in fields(self)}

    @property
    def classes(self) -> tuple[str, ...]:
        return self.spec.class_names(self.root)

    def check_classes(self, trained: Sequence[str]) -> None:
        """Raise ``UserError`` if what is trained on the classes ``trained`` has others than this
        dataset."""
        spec, classes = self.spec, self.classes
        if not classes or spec.transfer.get("classes"):
            return
        if len(classes) != len(trained) or not (spec.same_classes or classes == tuple(trained)):
            raise UserError(
                f"{spec.name} has {_listed(classes)}, what it is scored with has"
                f" {_listed(trained)}; give the classes the same names in the same order, or"
                " declare what differs: same_classes of the dataset if only the names do, otherwise"
                " transfer['classes']"
            )

    def encoded(self, split: Split) -> Sequence[Sample]:
        """The samples whose features are cached: all of train, even if only a share of it is
        trained on."""
        return self.full_train if self.full_train and split == "train" else self.samples[split]

    @property
    def without_unused(self) -> PreparedDataset:
        """The dataset with no more of train than the share that is trained on, as a config that
        plain mmengine runs has it."""
        trained_on = self.trained_on and self.trained_on.without_unused
        return replace(self, full_train=(), train_indices=(), trained_on=trained_on)


def _listed(classes: Sequence[str]) -> str:
    """``3 classes (cat, dog, …)``."""
    names = ", ".join([*classes[:5], "…"] if len(classes) > 5 else classes)
    return f"{len(classes)} classes ({names:.200})"


def with_share(data: PreparedDataset, share: float, seed: int) -> PreparedDataset:
    """``data`` with ``share`` (0 to 1) of its training images (or those of the dataset that is
    trained on), at least one; for classification that share of each class. Seed and image content
    decide which: the same for all backbones, smaller shares inside larger ones. Features of the
    full split are encoded, so all shares need one encoding.

    Raises:
        UserError: an image cannot be read.
    """
    if share == 1:
        return data
    if data.trained_on is not None:
        return replace(data, trained_on=with_share(data.trained_on, share, seed))
    train = data.samples["train"]
    ranks = [
        content_key(["share of train", seed, digest])
        for digest in content_hashes([data.root / sample.image for sample in train])
    ]
    strata: dict[object, list[int]] = defaultdict(list)
    for index, sample in enumerate(train):
        strata[sample.target if data.spec.kind == "classification" else None].append(index)
    selected: list[int] = []
    for indices in strata.values():
        indices.sort(key=lambda index: (ranks[index], index))
        selected += indices[: max(1, round(share * len(indices)))]
    selected.sort()
    samples = {**data.samples, "train": [train[index] for index in selected]}
    return replace(data, samples=samples, full_train=tuple(train), train_indices=tuple(selected))


# of ``cliptex_common.images.FORMATS``, without PFM, whose files are maps of numbers
IMAGE_SUFFIXES = (
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".apng", ".bmp", ".gif", ".webp"),
    *(".ppm", ".pgm", ".pbm", ".pnm", ".tif", ".tiff"),
)


@dataclass
class Unlisted:
    """What listers leave out.

    Attributes:
        links: to folders, since what is in them is listed anyway.
        files: in folders of images that are none, see ``walk_images``.
    """

    links: set[str] = field(default_factory=set)
    files: set[str] = field(default_factory=set)

    def notes(self) -> list[str]:
        """A line about each of the two, if there are any."""
        texts = {
            "links to folders that are listed anyway are left out": self.links,
            "files are not read as images": self.files,
        }
        return [
            f"{len(paths)} {text}, such as {min(paths)}" for text, paths in texts.items() if paths
        ]


# gets what the listers that are called meanwhile leave out
UNLISTED: ContextVar[Unlisted] = ContextVar("UNLISTED")


def require_folder(root: Path, name: str) -> Path:
    """The folder ``root / name``. Raises ``UserError`` if it does not exist."""
    if not (path := Path(root) / name).is_dir():
        above = Path(root).resolve().parent
        hint = f"; {above} has it, give that folder" if (above / name).is_dir() else ""
        raise UserError(f"folder {name} is missing in {root}{hint}")
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
    """Class names of a dataset of MMSegmentation, for any ``root``. Importing it takes seconds:
    declare ``functools.partial(mmlab_classes, module, dataset)``."""
    with redirect_stdout(io.StringIO()):  # it prints that an optional package is absent
        dataset_class = getattr(import_module(module), dataset)
    return tuple(name.strip() for name in dataset_class.METAINFO["classes"])


def walk_images(root: Path, name: str, listed: set[str] | None = None) -> list[str]:
    """The files of ``walk`` that are images: by their suffix, or without one by their content."""
    folder, images = Path(root) / name, list[str]()
    for file_name in walk(root, name, ("",), listed):
        if file_name.lower().endswith(IMAGE_SUFFIXES) or _is_image(folder / file_name):
            images.append(file_name)
        else:
            UNLISTED.get(Unlisted()).files.add(str(folder / file_name))
    return images


def _is_image(path: Path) -> bool:
    """Whether a file without a suffix is an image."""
    if path.suffix:
        return False
    try:
        open_image(path).close()
    except IMAGE_ERRORS:
        return False
    return True


def walk(
    root: Path, name: str, suffixes: Sequence[str], listed: set[str] | None = None
) -> list[str]:
    """Files in the folder ``root / name`` with one of ``suffixes``, nested or not, sorted; without
    hidden ones.

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
            UNLISTED.get(Unlisted()).links.add(directory)
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
    stems = {name: PurePath(name).with_suffix("").as_posix() for name in walk_images(root, images)}
    image_suffix = PurePath(next(iter(stems), "image.jpg")).suffix
    labels = [label[: -len(suffix)] for label in walk(root, targets, (suffix.lower(),))]
    stems |= {f"{stem}{image_suffix}": stem for stem in set(labels) - set(stems.values())}
    return [
        Sample(f"{images}/{name}", f"{targets}/{stem}{suffix}")
        for name, stem in sorted(stems.items())
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
                UNLISTED.get(Unlisted()).links.add(str(entry))
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
        if not (images := walk_images(root, class_folder, listed)):
            raise UserError(
                f"{Path(root) / class_folder} has no images; put some there, or remove the folder"
            )
        samples += [Sample(f"{class_folder}/{image}", index[name]) for image in images]
    return samples
