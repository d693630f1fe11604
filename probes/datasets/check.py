"""Checks of copies of datasets, before hours of work start: find one, count its samples, decode and
verify each of them; and ``data check``, which surveys a folder.

``Unreadable`` is raised for a single damaged file, which is skipped and reported; ``UserError`` if
the dataset is not what its declaration says (labels out of range, sizes that differ)."""

from __future__ import annotations

import functools
import hashlib
import io
import json
import warnings
from collections.abc import Collection, Container, Hashable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from cliptex_common.errors import UserError, report_malformed, suggest
from cliptex_common.files import (
    canonical_json,
    content_key,
    home,
    make_folder,
    read_json_object,
    write_json,
)
from cliptex_common.images import (
    IMAGE_ERRORS,
    Instances,
    mask_error,
    open_image,
    read_classes,
    read_instances,
    read_labels,
)
from cliptex_common.progress import Progress, Silent
from probes.datasets import base
from probes.datasets.base import (
    DatasetSpec,
    PreparedDataset,
    Sample,
    Split,
    Unreadable,
    require_file,
)
from probes.dense.tasks import DENSE_TASKS
from probes.features.files import HashedFile, content_hashes, read_and_hash, state_of, store_hashes
from probes.registry import DATASETS, PROBES


def verify(
    spec: DatasetSpec, classes: int, root: Path, sample: Sample, instances: Mapping[Any, Any]
) -> tuple[str, list[HashedFile]]:
    """Verify a sample: decode its image, validate its ground truth. Returns the sha256 of its name
    and content, and the hashes of its files.

    Args:
        classes: number of classes.
        instances: for detection, the result of ``coco_images``; otherwise unused.
    Raises:
        OSError: a file cannot be read.
        Unreadable: this sample cannot be decoded, or has no ground truth.
        UserError: the dataset is not what its declaration says.
    """
    image = root / sample.image
    data, hashed = read_and_hash(image)
    files = [hashed]
    _, size = decode(data, "image", size_only=True)
    if spec.kind in DENSE_TASKS:
        files.append(_check_map(spec, classes, root / sample.target, size))
        ground_truth = bytes.fromhex(files[1][2])
    elif spec.kind == "detection":
        ground_truth = _check_instances(spec, image, instances[sample.target], size)
    elif spec.kind == "classification":
        labels = sample.target if isinstance(sample.target, list) else [sample.target]
        if not all(0 <= label < classes for label in labels):
            raise UserError(
                f"{image} has class {sample.target}, but {spec.name} has {classes} classes"
            )
        ground_truth = str(sample.ground_truth).encode()
    else:
        if spec.kind == "image-text":
            _check_captions(spec, image, sample.target)
        elif spec.kind == "video":
            _check_masks(root / sample.target, size)
        elif spec.kind.endswith("-views"):  # object-views, scene-views
            _check_depth(root / sample.files[0])
        ground_truth = canonical_json(sample.target).encode()
        for path in sample.files:
            files.append(read_and_hash(root / path)[1])
            ground_truth += bytes.fromhex(files[-1][2])
    content = sample.image.encode() + b"\0" + bytes.fromhex(hashed[2])
    return hashlib.sha256(content + ground_truth).hexdigest(), files


def _check_map(spec: DatasetSpec, classes: int, path: Path, size: tuple[int, int]) -> HashedFile:
    data, hashed = read_and_hash(path)
    label, label_size = decode(data, "label map")
    if label_size != size:
        raise UserError(
            f"{path} is {label_size[0]}x{label_size[1]} but its image is {size[0]}x{size[1]};"
            f" the label maps of {spec.name} do not belong to these images"
        )
    DENSE_TASKS[spec.kind].check_file(spec, classes, path, label)
    return hashed


def _check_masks(path: Path, size: tuple[int, int]) -> None:
    try:
        masks = read_classes(path)
    except IMAGE_ERRORS as error:
        raise UserError(f"{path} cannot be read ({error}); get the file again") from error
    if masks.shape[::-1] != size:
        raise UserError(
            f"{path} is {masks.shape[1]}x{masks.shape[0]} but its frame is {size[0]}x{size[1]}"
        )
    if int(path.stem) == 0:
        objects = set(np.unique(masks).tolist()) - {0, 255}
        if empty := set(range(1, max(objects, default=1) + 1)) - objects:
            raise UserError(f"{path}: object {min(empty)} has no pixel in the first frame")


def _check_depth(path: Path) -> None:
    depth, _ = decode(path.read_bytes(), path.name)
    if not np.asarray(depth).any():
        raise Unreadable(f"{path.name} has no pixel with a depth")


def _check_instances(
    spec: DatasetSpec, image: Path, entry: Mapping[str, Any], size: tuple[int, int]
) -> bytes:
    declared = entry["width"], entry["height"]
    if size != declared:
        raise UserError(
            f"{image} is {size[0]}x{size[1]} but its annotation says {declared[0]}x{declared[1]};"
            f" the images of {spec.name} do not belong to these annotations"
        )
    return canonical_json(entry["annotations"]).encode()


def _check_captions(spec: DatasetSpec, image: Path, captions: Sequence[str]) -> None:
    # retrieval scores are comparable only over the same captions
    expected = spec.extra.get("captions_per_image", len(captions))
    if len(captions) != expected:
        raise UserError(
            f"{image} has {len(captions)} captions instead of {expected}; get the annotation file"
            " again"
        )
    if not all(caption.strip() for caption in captions):
        raise Unreadable("an empty caption")


def decode(
    data: bytes, name: str, *, size_only: bool = False
) -> tuple[Image.Image, tuple[int, int]]:
    """A completely decoded image and its (width, height). With ``size_only`` JPEGs are decoded at
    an eighth of their size, which reads all bytes too."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            image = open_image(io.BytesIO(data))
        size = image.size
        if size_only:
            image.draft("RGB", (1, 1))
        image.load()
    # Pillow raises many kinds for broken files, SyntaxError and struct.error among them
    except Exception as error:
        reason = (str(error) or type(error).__name__).splitlines()[0].split(" <_io.")[0]
        raise Unreadable(f"{name} cannot be decoded: {reason}") from error
    return image, size


def coco_images(spec: DatasetSpec, root: Path, split: Split) -> Instances:
    """The images of a split's annotation file, see ``read_instances``.

    Raises:
        UserError: the file is malformed or has no annotations, or one has a category that the
            declaration lacks, a box outside its image or an invalid mask.
    """
    path = require_file(root, spec.annotations[split])
    categories, images = read_instances(path)
    classes = set(spec.class_names(root))
    with report_malformed(f"{path} is not a COCO annotation file"):
        for image in images.values():
            for annotation in image["annotations"]:
                name = f"{path} annotation {annotation['id']}"
                category = categories.get(annotation["category_id"])
                if category not in classes:
                    raise UserError(
                        f"{name} has category {annotation['category_id']} ({category}), which is"
                        f" not one of the {len(classes)} classes of {spec.name}"
                    )
                check_instance(name, annotation, (image["width"], image["height"]))
    if not any(image["annotations"] for image in images.values()):
        raise UserError(f"{path} has no annotations; get the file again")
    return images


def check_instance(name: str, annotation: Mapping[str, Any], size: tuple[int, int]) -> None:
    """The box is in the image (within two pixels, for rounding), and the mask has its size.

    Raises:
        UserError: it is not. LookupError, TypeError, ValueError: a field is missing or malformed.
    """
    x, y, width, height = (float(value) for value in annotation["bbox"])
    inside = x >= -2 and y >= -2 and x + width <= size[0] + 2 and y + height <= size[1] + 2
    if not (inside and width >= 0 and height >= 0):  # also for NaN
        raise UserError(
            f"{name} has box {annotation['bbox']} outside its image of {size[0]}x{size[1]}"
        )
    float(annotation["area"])  # scoring needs it
    if error := mask_error(annotation.get("segmentation"), size[1], size[0]):
        raise UserError(f"{name} has {error}")


CHECK_VERSION = 3  # raised whenever the checks change: older results no longer count
SPLITS: tuple[Split, ...] = ("train", "val")
ALL: Mapping[Split, int | None] = dict.fromkeys(SPLITS)
MAX_UNREADABLE = 0.01  # of a split; one sample is always accepted
LINKED = ("video", "object-views", "scene-views")  # kinds of which no sample may be unreadable
# kinds that are scored on relations between images, which ``--limit`` would break
RELATIONS = ("association", "correspondence", "instance-retrieval", *LINKED)
FEW = 20  # samples of a split that a dry run decodes
CHUNK = 1000  # samples whose hashes are stored together


class DatasetNotFound(UserError):
    """A dataset has no folder."""


def check_names(data_dirs: Mapping[str, Path]) -> None:
    """Raise ``UserError`` if ``--data`` names no dataset."""
    allowed = {
        name
        for spec in DATASETS.load_entry_points().values()
        for name in (spec.name, spec.folder, *spec.other_folders)
    }
    for name in data_dirs:
        if name not in allowed:
            raise UserError(f"--data {name}=…: no dataset {name!r}; {suggest(name, allowed)}")


def find_folder(spec: DatasetSpec, data_root: Path | None, data_dirs: Mapping[str, Path]) -> Path:
    """The folder of a dataset: ``--data NAME=DIR`` if given, else its folder under ``--data-root``.

    NAME is the dataset's name or its folder (``nyu`` places nyu-depth and nyu-normal). DIR is the
    dataset's own folder, or one that holds it in the usual tree (``DIR/VOCdevkit/VOC2012``).

    Raises:
        DatasetNotFound: no folder is given, or it does not exist.
        UserError: a DIR that does not exist.
    """
    if explicit := data_dirs.get(spec.name) or data_dirs.get(spec.folder):
        parts = Path(spec.folder).parts
        candidates = [Path(explicit).joinpath(*parts[start:]) for start in range(len(parts) + 1)]
        candidates[1:1] = [Path(explicit) / folder for folder in spec.other_folders]
        if root := next((path for path in candidates if path.is_dir()), None):
            return root
        raise UserError(f"--data {spec.name}={explicit}: no such folder")
    if data_root is None:
        raise DatasetNotFound(
            f"dataset {spec.name} needs a folder: --data-root DIR (with DIR/{spec.folder}) or"
            f" --data {spec.name}=DIR"
        )
    for folder in (spec.folder, *spec.other_folders):
        if (root := Path(data_root) / folder).is_dir():
            return root
    raise DatasetNotFound(f"dataset {spec.name} is not in {data_root}: {_where(spec, data_root)}")


def _where(spec: DatasetSpec, data_root: Path | None) -> str:
    """What to do about a dataset without a folder in ``data_root``."""
    if data_root and not Path(data_root).is_dir():
        return "there is no such folder"
    for folder in (spec.folder, *spec.other_folders):
        if data_root and Path(data_root).match(folder):  # its own folder, not the one above
            return f"this is its own folder; pass --data {spec.name}={data_root}"
    return f"no folder {spec.folder}; put it there or pass --data {spec.name}=DIR"


def prepare(
    spec: DatasetSpec,
    root: Path,
    *,
    splits: Mapping[Split, int | None] = ALL,
    partial: bool = False,
    workers: int = 2,
    progress: Progress | None = None,
    cached_only: bool = False,
) -> PreparedDataset:
    """List, count and decode every sample of the copy at ``root``, and return it as a dataset. The
    result is cached: a second call only compares names, sizes and times of the files.

    Args:
        splits: that the probe uses (``val`` alone for zero-shot and retrieval) → number of samples
            to take, evenly spaced (None: all).
        partial: accept fewer samples than the official dataset has.
        workers: decoding threads; they never change the result.
        cached_only: write nothing; of a copy that was never checked, a few samples are decoded, and
            the result has no fingerprint.

    Raises:
        UserError: something is missing, the dataset is not complete (without ``partial``), a split
            is empty, more than 1 % of a split (and more than one sample) cannot be read, or labels
            do not match the declaration.
    """
    root = Path(root)
    spec = spec.at(root)
    inventory = Inventory(spec, root)
    for split, limit in splits.items():
        inventory.add_split(split, limit)
    complete = inventory.is_complete()
    if not complete and not (partial or spec.allows_subsets):
        raise UserError(
            f"{spec.name} is not complete: {inventory.counts()}; "
            f"get the rest or pass --partial to run on these samples (in {root})"
        )
    inventory.validate_splits()

    identity = {"version": CHECK_VERSION, "root": str(root.resolve()), "files": inventory.stats}
    identity |= {"spec": content_identity(spec, root), "expected": spec.expected}
    identity |= DATASETS.origin(spec.name)
    cache = home() / "datasets" / f"{spec.name}-{content_key(identity)}.json"
    result = read_json_object(cache)
    if not result:
        if cached_only:
            check_few(inventory)
            result = {"skipped": dict.fromkeys(splits, ()), "fingerprint": "", "notes": ()}
        else:
            journal = cache.with_suffix(".part")
            result = check_samples(inventory, journal, workers, progress or Silent())
            write_json(cache, result)
            journal.unlink(missing_ok=True)

    skipped = [(path, reason) for split in splits for path, reason in result["skipped"][split]]
    unreadable = {path for path, _ in skipped}
    samples: dict[str, list[Sample]] = {
        split: [sample for sample in inventory.present[split] if sample.image not in unreadable]
        for split in splits
    }
    return PreparedDataset(
        spec.name,
        root,
        samples,
        tuple(skipped),
        result["fingerprint"],
        partial=not complete or bool(inventory.left_out),
        notes=tuple(result["notes"]),
    )


def content_identity(spec: DatasetSpec, root: Path) -> dict[str, Any]:
    """What the declaration says about the content: part of the fingerprint."""
    return {
        "kind": spec.kind,
        "classes": spec.class_names(root),
        "ignore_index": spec.ignore_index,
        "label_offset": spec.label_offset,
        "extra": dict(spec.extra),
    }


@dataclass
class Inventory:
    """The samples that are listed and their files, without decoding any.

    Attributes:
        present: split → samples whose files all exist, in the official order.
        missing: split → files that are listed but do not exist.
        stats: (relative path, bytes, mtime in ns) of every file; the key of the cached result.
        left_out: split → number of samples left out by ``--limit``.
        images: split → inode (and name within a tar) of each image.
        links: that were left out (``base.LEFT_OUT``).
    """

    spec: DatasetSpec
    root: Path
    present: dict[Split, list[Sample]] = field(default_factory=dict)
    missing: dict[Split, list[str]] = field(default_factory=dict)
    stats: list[tuple[str, int, int]] = field(default_factory=list)
    left_out: dict[Split, int] = field(default_factory=dict)
    images: dict[Split, set[tuple[int, str]]] = field(default_factory=dict)
    links: set[str] = field(default_factory=set)

    def add_split(self, split: Split, limit: int | None = None) -> None:
        """List the samples of a split, or ``limit`` of them. Raises ``UserError`` naming a missing
        list or folder."""
        spec = self.spec
        base.LEFT_OUT.set(self.links)
        try:
            samples = spec.list_samples(self.root, split)
        except UserError as error:
            raise UserError(f"{spec.name}: {error}") from error
        if limit is not None and limit < len(samples):
            if spec.kind in RELATIONS:
                raise UserError(
                    f"--limit: {spec.name} is scored on relations between images; leave it out"
                    " with --task"
                )
            self.left_out[split] = len(samples) - limit
            samples = [samples[index * len(samples) // limit] for index in range(limit)]
        present, missing, images = [], [], set()
        for sample in samples:
            inode = self._stat(split, sample.image)
            files = [sample.target] if spec.kind in DENSE_TASKS else sample.files
            if inode is None:
                missing.append(sample.image)
            elif absent := [path for path in files if self._stat(split, path) is None]:
                missing += absent
            else:
                present.append(sample)
                images.add((inode, sample.image.partition(".tar/")[2]))
        self.present[split], self.missing[split], self.images[split] = present, missing, images
        if spec.kind == "detection":
            self._stat(split, spec.annotations[split])
        elif spec.kind not in DENSE_TASKS:  # the ground truth is in the listing
            targets = content_key([sample.ground_truth for sample in samples])
            self.stats.append((f"{split}:{targets}", len(samples), 0))

    def _stat(self, split: Split, path: str) -> int | None:
        """Record a file's size and time; its inode, None if it does not exist."""
        try:
            size, time, inode = state_of(f"{self.root}/{path}")
        except OSError:
            return None
        self.stats.append((f"{split}:{path}", size, time))
        return inode

    def is_complete(self) -> bool:
        """Whether the counts are the official ones, if there are any."""
        counts = {
            split: len(samples) + self.left_out.get(split, 0)
            for split, samples in self.present.items()
        }
        return all(count == self.spec.expected.get(split, count) for split, count in counts.items())

    def counts(self) -> str:
        """``train 103 of 1464, val 60 of 1449; 2 listed files missing, such as x.jpg``."""
        counts = []
        for split, samples in self.present.items():
            expected = self.spec.expected.get(split)
            counts.append(f"{split} {len(samples)}" + (f" of {expected}" if expected else ""))
        text = ", ".join(counts)
        if missing := [path for paths in self.missing.values() for path in paths]:
            text += f"; {len(missing)} listed files missing, such as {missing[0]}"
            if missing[0].startswith("/"):
                text += "; a lister's paths are relative to its root"
        return text

    def link_notes(self) -> list[str]:
        """A line about links that were left out, if there are any."""
        if not self.links:
            return []
        count, first = len(self.links), min(self.links)
        return [f"{count} links to folders that are listed anyway are left out, such as {first}"]

    def validate_splits(self) -> None:
        """Raise ``UserError`` for an empty split or an image that is listed twice."""
        seen: dict[str, Split] = {}
        for split, samples in self.present.items():
            if not samples:
                raise UserError(
                    f"{self.spec.name}: split {split!r} is empty in {self.root}; {self.counts()}"
                )
            for sample in samples:
                if first := seen.get(sample.image):
                    raise UserError(
                        f"{self.spec.name}: {sample.image} is listed twice, in {first} and {split};"
                        " correct the lists"
                    )
                seen[sample.image] = split


def overlap(images: Mapping[Split, Collection[Hashable]]) -> list[str]:
    """A line about images of val that are in train too, if there are any."""
    train, val = set(images.get("train", ())), images.get("val", ())
    if not (shared := sum(image in train for image in val)):
        return []
    return [
        f"{shared} of {len(val)} val images are in train too: scores on them are not of new images"
    ]


def check_samples(
    inventory: Inventory, journal: Path, workers: int, progress: Progress
) -> dict[str, Any]:
    """Decode and hash everything; results in the ``journal`` of an interrupted check are reused.

    Returns:
        {"fingerprint": hash, "skipped": {split: [(path, reason)]}, "notes": [line]}
    """
    spec, root = inventory.spec, inventory.root
    classes = len(spec.class_names(root))
    digests: dict[Split, list[str]] = {}
    hashes: dict[Split, list[str]] = {}
    skipped: dict[Split, list[tuple[str, str]]] = {}
    checked = read_journal(journal)
    make_folder(journal.parent)
    progress.start(f"checking {spec.name}", sum(map(len, inventory.present.values())))
    for split, samples in inventory.present.items():
        instances = coco_images(spec, root, split) if spec.kind == "detection" else {}
        check = functools.partial(check_sample, spec, classes, root, instances)
        pending = [sample for sample in samples if sample.image not in checked]
        progress.advance(len(samples) - len(pending))
        # Decoding and hashing release the GIL. Lines are written whole, since other processes may
        # append theirs: halves of two lines could be a wrong digest.
        with ThreadPoolExecutor(max(1, workers)) as pool, journal.open("a", buffering=1) as file:
            for start in range(0, len(pending), CHUNK):
                chunk, hashed = pending[start : start + CHUNK], list[HashedFile]()
                try:
                    results = zip(chunk, pool.map(check, chunk), strict=True)
                    for sample, (digest, reason, files) in results:
                        checked[sample.image] = digest, reason
                        hashed += files
                        file.write(json.dumps([sample.image, digest, reason]) + "\n")
                        progress.advance()
                finally:
                    store_hashes(hashed)
        usable = [sample.image for sample in samples if not checked[sample.image][1]]
        digests[split] = [checked[image][0] for image in usable]
        reasons = [(sample.image, checked[sample.image][1]) for sample in samples]
        skipped[split] = [(image, reason) for image, reason in reasons if reason]
        if not spec.expected:  # of an official dataset, missing files make it partial
            skipped[split] += [(path, "missing") for path in inventory.missing[split]]
        limit_unreadable(inventory, split, len(usable), skipped[split])
        targets = (str(root / each.target) for each in samples if not checked[each.image][1])
        offset, ignored = spec.label_offset, spec.ignore_index
        if spec.kind == "segmentation" and all(
            (read_labels(path, offset, ignored, classes) == ignored).all() for path in targets
        ):
            raise UserError(
                f"{spec.name}: no image of {split} has a labelled pixel (in {root}); correct the"
                " label maps, or ignore_index and label_offset"
            )
        hashes[split] = content_hashes([root / image for image in usable])
    return {
        "fingerprint": content_key([content_identity(spec, root), digests], length=32),
        "skipped": skipped,
        "notes": [*overlap(hashes), *inventory.link_notes()],
    }


def check_few(inventory: Inventory) -> None:
    """Decode ``FEW`` samples of each split, evenly spaced. Raises ``UserError`` if they are not
    what the declaration says, none can be read, or too many files are missing."""
    spec, root = inventory.spec, inventory.root
    classes = len(spec.class_names(root))
    for split, samples in inventory.present.items():
        instances = coco_images(spec, root, split) if spec.kind == "detection" else {}
        few = samples[:: max(1, len(samples) // FEW)]
        reasons = [check_sample(spec, classes, root, instances, sample)[1] for sample in few]
        missing = [] if spec.expected else [(path, "missing") for path in inventory.missing[split]]
        if all(reasons):
            unread = [(sample.image, reason) for sample, reason in zip(few, reasons, strict=True)]
            limit_unreadable(inventory, split, 0, unread)
        limit_unreadable(inventory, split, len(samples), missing)


def check_sample(
    spec: DatasetSpec, classes: int, root: Path, instances: Mapping[Any, Any], sample: Sample
) -> tuple[str, str, list[HashedFile]]:
    """The digest of ``verify`` and its files; or '', the reason why the sample is left out, and
    none. Raises ``UserError`` as it does."""
    try:
        digest, files = verify(spec, classes, root, sample, instances)
        return digest, "", files
    except (Unreadable, OSError) as error:
        return "", getattr(error, "strerror", None) or str(error), []


def read_journal(path: Path) -> dict[str, tuple[str, str]]:
    """Sample → (digest, reason) of an interrupted check."""
    results = {}
    if path.is_file():
        for line in path.read_text(encoding="utf-8").splitlines():
            with suppress(ValueError):  # the last line of a killed process
                name, digest, reason = json.loads(line)
                results[name] = (digest, reason)
    return results


def limit_unreadable(
    inventory: Inventory, split: Split, usable: int, skipped: Sequence[tuple[str, str]]
) -> None:
    """Raise ``UserError`` if too many samples of a split cannot be used."""
    total = usable + len(skipped)
    accepted, limit = max(1, int(MAX_UNREADABLE * total)), ", more than one and than 1 %"
    if inventory.spec.kind in LINKED:
        accepted, limit = 0, ""
    if usable and len(skipped) <= accepted:
        return
    examples = ", ".join(f"{path} ({reason})" for path, reason in skipped[:3])
    raise UserError(
        f"{inventory.spec.name}: {len(skipped)} of {total} {split} samples cannot be used{limit}:"
        f" {examples}; get them again or remove them (in {inventory.root})"
    )


@dataclass(frozen=True)
class DatasetState:
    """One line of ``data check``.

    Attributes:
        state: ``absent``, ``broken`` (no probe can run), ``partial`` (runs with ``--partial``),
            ``complete`` (the official counts) or ``available`` (no official counts are declared).
        counts: samples by split.
        expected: official samples by split, if declared.
        message: what is missing or wrong, or should be known.
    """

    name: str
    state: str
    counts: Mapping[str, int] = field(default_factory=dict)
    expected: Mapping[str, int] = field(default_factory=dict)
    message: str = ""


def survey(
    data_root: Path | None,
    data_dirs: Mapping[str, Path],
    *,
    full: bool = False,
    workers: int = 2,
    progress: Progress | None = None,
    only: Container[str] | None = None,
    splits: Sequence[Split] = SPLITS,
) -> list[DatasetState]:
    """``data check``: which datasets are in a folder, how complete they are, and which probes run
    on them. One row for each registered dataset (of those in ``only``) in order, by names and
    counts of ``splits``; with every sample decoded if ``full``. Generated datasets are left out
    unless they are in ``data_dirs``.

    Raises:
        UserError: a folder in ``data_dirs`` does not exist, or belongs to no dataset.
    """
    rows = []
    for _, spec in sorted(DATASETS.load_entry_points().items()):
        if only is not None and spec.name not in only:
            continue
        if spec.is_generated and spec.name not in data_dirs:
            continue
        try:
            root = find_folder(spec, data_root, data_dirs)
        except DatasetNotFound:
            hint = _where(spec, data_root)
            if deeper := sorted(data_root.glob(f"*/{spec.folder}")) if data_root else []:
                hint = f"found elsewhere: --data {spec.name}={deeper[0]}"
            rows.append(DatasetState(spec.name, "absent", expected=spec.expected, message=hint))
            continue
        try:
            spec = spec.at(root)
        except UserError as error:
            rows.append(DatasetState(spec.name, "broken", {}, spec.expected, str(error)))
            continue
        used: Sequence[Split] = ("val",) if spec.trained_on else splits
        state, counts, messages = inspect_copy(spec, root, used)
        if full and state != "broken":
            try:
                data = prepare(
                    spec,
                    root,
                    splits=dict.fromkeys(split for split in used if counts.get(split)),
                    partial=True,
                    workers=workers,
                    progress=progress,
                )
                messages += [f"{path}: {reason}" for path, reason in data.skipped[:3]]
                messages += [note for note in data.notes if note not in messages]
            except UserError as error:
                state = "broken"
                messages.append(str(error))
        rows.append(DatasetState(spec.name, state, counts, spec.expected, "; ".join(messages)))
    return rows


def inspect_copy(
    spec: DatasetSpec, root: Path, splits: Sequence[Split]
) -> tuple[str, dict[str, int], list[str]]:
    """State, samples by split and messages (see ``DatasetState``), without decoding anything."""
    inventory = Inventory(spec, root)
    splits = [split for split in splits if spec.expected.get(split) != 0]
    messages = []
    for split in splits:
        try:
            inventory.add_split(split)
        except UserError as error:
            messages.append(str(error))
    counts: dict[str, int] = {split: len(each) for split, each in inventory.present.items()}
    if any(inventory.missing.values()) or 0 in counts.values():
        messages.append(inventory.counts())
    if all(counts.get(split) for split in splits):
        state = "complete" if spec.expected else "available"
        if not inventory.is_complete():
            state = "partial"
    elif counts.get("val") and (untrained := untrained_probes(spec.kind)):
        state = "partial"
        messages.append(f"val alone: {', '.join(untrained)} can run, nothing can be trained")
    else:
        state = "broken"
    messages += overlap(inventory.images)  # links to images of train, or the same files
    messages += inventory.link_notes()
    if train_list := spec.extra.get("train_list"):
        messages.append(f"train list: {train_list}")
    if state == "available":
        messages.append("no official counts declared")
    return state, counts, messages


def untrained_probes(kind: str) -> list[str]:
    """Names of the probes for a kind of dataset that need no train split."""
    probes = PROBES.load_entry_points().values()
    return [each.name for each in probes if each.kind == kind and "train" not in each.splits]
