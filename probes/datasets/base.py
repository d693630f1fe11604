"""What a dataset is: an official layout on disk, declared in one file and registered once."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

Kind = Literal[
    "segmentation",
    "depth",
    "normals",
    "detection",
    "classification",
    "image-text",
    "association",
    "correspondence",
]
Split = Literal["train", "val"]
Lister = Callable[[Path, Split], list["Sample"]]


@dataclass(frozen=True)
class Sample:
    """One image of a dataset and where its ground truth is.

    Attributes:
        image: path of the image, relative to the dataset's root, with forward slashes.
        target: relative path of the label map (segmentation, depth, normals), class index
            (classification), list of captions (image-text), image id in the annotation file
            (detection), or [instance, cue, whether it belongs to it] for each question that it is a
            candidate of (association), or the pairs that it is the source of (correspondence): each
            a mapping with the other ``image``, and ``source`` and ``target`` points (x, y in
            pixels) with the object's ``box`` in the target.
        group: of what is scored by group (a region of the world): its number; None elsewhere.
    """

    image: str
    target: Any = None
    group: int | None = None

    @property
    def truth(self) -> Any:
        """Target and group, as they are hashed."""
        return self.target if self.group is None else [self.target, self.group]


@dataclass(frozen=True)
class DatasetSpec:
    """A dataset in its official layout.

    Attributes:
        name: what users call it (``voc``, ``nyu-depth`` …); the first half of a task's name.
        kind: what its ground truth is.
        folder: where it lies under ``--data-root`` (OpenMMLab's tree), e.g. ``VOCdevkit/VOC2012``;
            ``also``: other names that the folder has.
        list_samples: (root, split) → samples in a stable order. Raises ``UserError`` naming what is
            missing.
        expected: official number of samples of each split; a dataset with fewer runs only with
            ``--partial``. Empty where none are declared.
        counts_itself: the layout says whether a copy is whole, so that one that is smaller than the
            official dataset runs without ``--partial``, as a partial one.
        classes: class names, by index; empty for regression and image-text. May be a function of
            the root, for layouts that name their classes themselves (ImageFolder) and names that
            are slow to import (``mmlab_classes``).
        ignore_index: label value that is not scored (segmentation).
        label_offset: added to the stored label (ADE20K: -1, its stored 0 is 'unlabelled' and
            becomes ``ignore_index``).
        annotations: split → annotation file relative to the root (detection, image-text).
        extra: protocol facts that belong to the dataset: depth range in metres and file scale,
            evaluation crop, its main metric where that is not the probe's (``main_metric``), its
            prompts (``templates``, ``{c}`` for the class) …; part of a task's identity.
        adapt: (declaration, root) → the declaration as it holds for the copy at ``root``, where
            copies differ in what they hold (VOC with or without the augmented train list);
            ``prepare`` applies it, so ``PreparedDataset.spec`` is right.
        embedded: made by the suite that uses it; ``data check`` does not look for it among a user's
            data.
        about: one line for ``list``: what it is, where to get it.
        module: that declares it, which configs import; ``register_dataset`` finds it.
    """

    name: str
    kind: Kind
    folder: str
    list_samples: Lister
    expected: Mapping[str, int] = field(default_factory=dict)
    classes: tuple[str, ...] | Callable[[Path], tuple[str, ...]] = ()
    ignore_index: int = 255
    label_offset: int = 0
    annotations: Mapping[str, str] = field(default_factory=dict)
    extra: Mapping[str, Any] = field(default_factory=dict)
    adapt: Callable[[DatasetSpec, Path], DatasetSpec] | None = None
    embedded: bool = False
    also: tuple[str, ...] = ()
    counts_itself: bool = False
    about: str = ""
    module: str = ""

    def at(self, root: Path) -> DatasetSpec:
        """The declaration as it holds for the copy at ``root``."""
        return self.adapt(self, root) if self.adapt else self

    def class_names(self, root: Path) -> tuple[str, ...]:
        """Names of the classes of the copy at ``root``."""
        return self.classes(root) if callable(self.classes) else self.classes


@dataclass(frozen=True)
class PreparedDataset:
    """A dataset on this disk, checked: what a probe gets.

    Attributes:
        spec: its declaration.
        root: its folder on this disk.
        samples: split → usable samples, in the official order.
        skipped: (relative path, reason) of each sample left out because it cannot be read.
        fingerprint: hash over names and content of all samples used; the same bytes give the same
            one everywhere.
        partial: whether it is a part of the official dataset (then part of the protocol).
        whole: all of train, where ``samples`` has a part of it (see ``with_share``); places: of
            that part in it.
    """

    spec: DatasetSpec
    root: Path
    samples: Mapping[str, list[Sample]]
    skipped: tuple[tuple[str, str], ...] = ()
    fingerprint: str = ""
    partial: bool = False
    whole: tuple[Sample, ...] = ()
    places: tuple[int, ...] = ()

    @property
    def classes(self) -> tuple[str, ...]:
        return self.spec.class_names(self.root)

    def encoded(self, split: Split) -> Sequence[Sample]:
        """The samples whose features are made and kept: all of train, whatever part of it is
        trained on."""
        return self.whole if self.whole and split == "train" else self.samples[split]

    @property
    def alone(self) -> PreparedDataset:
        """A dataset that has no more of train than what is trained on."""
        return replace(self, whole=(), places=())

    @property
    def unused(self) -> list[int]:
        """Places in ``whole`` that are not trained on."""
        return sorted(set(range(len(self.whole))) - set(self.places))
