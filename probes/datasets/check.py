"""Checks of copies of datasets, before hours of work start: find one, count its samples, decode and
verify each of them; and ``data check``, which surveys a folder.

What a kind of dataset checks of its ground truth stands with it (``ground_truth``)."""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Collection, Container, Hashable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cliptex_common.errors import UserError, suggest
from cliptex_common.files import content_key, home, make_folder, read_json_object, write_json
from cliptex_common.images import read_instances
from cliptex_common.progress import Progress, Silent
from probes.datasets.base import (
    UNLISTED,
    DatasetSpec,
    PreparedDataset,
    Sample,
    Split,
    UnfitCopy,
    Unlisted,
    Unreadable,
    require_file,
)
from probes.datasets.ground_truth import (
    MapFile,
    SplitToCheck,
    class_of,
    coco_images,
    decode,
    ground_truth,
    require_labels,
    with_group,
)
from probes.datasets.quality import describe_quality
from probes.features.files import HashedFile, content_hashes, read_and_hash, state_of, store_hashes
from probes.registry import DATASETS, PROBES


def verify(data: SplitToCheck, sample: Sample) -> tuple[str, list[HashedFile]]:
    """Verify a sample: decode its image, check its ground truth. Returns the sha256 of its name and
    content, and the hashes of its files.

    Raises:
        OSError: a file cannot be read.
        Unreadable: this sample cannot be decoded, or has no ground truth.
        UserError: the dataset is not what its declaration says.
    """
    image, hashed = read_and_hash(data.root / sample.image)
    _, size = decode(image, "image", size_only=True)
    truth = ground_truth(data.spec, sample)
    truth.check(data, data.root / sample.image, size)
    files = [hashed, *(read_and_hash(data.root / path)[1] for path in truth.files)]
    first, *others = (bytes.fromhex(sha256) for _, _, sha256 in files)
    text = truth.hashed(data, sample)
    content = b"".join([sample.image.encode(), b"\0", first, text.encode(), *others])
    return hashlib.sha256(content).hexdigest(), files


CHECK_VERSION = 4  # raised whenever the checks change: older results no longer count
SPLITS: tuple[Split, ...] = ("train", "val")
ALL: Mapping[Split, int | None] = dict.fromkeys(SPLITS)
MAX_UNREADABLE = 0.01  # of a split; one sample is always accepted
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
        return "there is no such folder; `data get` downloads datasets"
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
        notes=(*result["notes"], *inventory.unlisted.notes()),
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
        unlisted: what the lister leaves out.
    """

    spec: DatasetSpec
    root: Path
    present: dict[Split, list[Sample]] = field(default_factory=dict)
    missing: dict[Split, list[str]] = field(default_factory=dict)
    stats: list[tuple[str, int, int]] = field(default_factory=list)
    left_out: dict[Split, int] = field(default_factory=dict)
    images: dict[Split, set[tuple[int, str]]] = field(default_factory=dict)
    unlisted: Unlisted = field(default_factory=Unlisted)

    def add_split(self, split: Split, limit: int | None = None) -> None:
        """List the samples of a split, or ``limit`` of them. Raises ``UserError`` naming a missing
        list or folder."""
        spec, kind = self.spec, class_of(self.spec.kind)
        UNLISTED.set(self.unlisted)
        try:
            samples = spec.list_samples(self.root, split)
        except UserError as error:
            raise UserError(f"{spec.name}: {error}") from error
        except (LookupError, TypeError):  # is the file wrong, or the lister?
            if spec.annotations:
                read_instances(require_file(self.root, spec.annotations[split]))
            raise
        if limit is not None and limit < len(samples):
            if kind.is_relation:
                raise UserError(
                    f"--limit: {spec.name} is scored on relations between images; leave it out"
                    " with --task"
                )
            self.left_out[split] = len(samples) - limit
            samples = [samples[index * len(samples) // limit] for index in range(limit)]
        present, missing, images = [], [], set()
        truths = [ground_truth(spec, sample) for sample in samples]
        for sample, truth in zip(samples, truths, strict=True):
            inode = self._stat(split, sample.image)
            if inode is None:
                missing.append(sample.image)
            elif absent := [path for path in truth.files if self._stat(split, path) is None]:
                missing += absent
            else:
                present.append(sample)
                images.add((inode, sample.image.partition(".tar/")[2]))
        self.present[split], self.missing[split], self.images[split] = present, missing, images
        if spec.annotations:
            self._stat(split, spec.annotations[split])
        elif kind is not MapFile:  # the ground truth is in the listing
            targets = content_key(list(map(with_group, truths, samples)))
            self.stats.append((f"{split}:{targets}", len(samples), 0))

    def _stat(self, split: Split, path: str) -> int | None:
        """Record a file's size and time; its inode, None if it does not exist."""
        try:
            size, time, inode = state_of(f"{self.root}/{path}")
        except OSError:
            return None
        self.stats.append((f"{split}:{path}", size, time))
        return inode

    def to_check(self, split: Split) -> SplitToCheck:
        """The split for ``verify``. Raises ``UserError`` if its annotation file is malformed."""
        spec, root = self.spec, self.root
        instances = coco_images(spec, root, split) if spec.annotations else {}
        return SplitToCheck(spec, root, split, len(spec.class_names(root)), instances)

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
    digests: dict[Split, list[str]] = {}
    hashes: dict[Split, list[str]] = {}
    skipped: dict[Split, list[tuple[str, str]]] = {}
    checked = read_journal(journal)
    make_folder(journal.parent)
    progress.start(f"checking {spec.name}", sum(map(len, inventory.present.values())))
    for split, samples in inventory.present.items():
        data = inventory.to_check(split)
        check = functools.partial(check_sample, data)
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
        usable = [sample for sample in samples if not checked[sample.image][1]]
        digests[split] = [checked[sample.image][0] for sample in usable]
        reasons = [(sample.image, checked[sample.image][1]) for sample in samples]
        skipped[split] = [(image, reason) for image, reason in reasons if reason]
        if not spec.expected:  # of an official dataset, missing files make it partial
            skipped[split] += [(path, "missing") for path in inventory.missing[split]]
        limit_unreadable(inventory, split, len(usable), skipped[split])
        require_labels(data, usable)
        hashes[split] = content_hashes([root / sample.image for sample in usable])
    return {
        "fingerprint": content_key([content_identity(spec, root), digests], length=32),
        "skipped": skipped,
        "notes": overlap(hashes),
    }


def check_few(inventory: Inventory) -> None:
    """Decode ``FEW`` samples of each split, evenly spaced. Raises ``UserError`` if they are not
    what the declaration says, none can be read, or too many files are missing."""
    for split, samples in inventory.present.items():
        data = inventory.to_check(split)
        few = samples[:: max(1, len(samples) // FEW)]
        reasons = [check_sample(data, sample)[1] for sample in few]
        missing = (
            [] if data.spec.expected else [(path, "missing") for path in inventory.missing[split]]
        )
        if all(reasons):
            unread = [(sample.image, reason) for sample, reason in zip(few, reasons, strict=True)]
            limit_unreadable(inventory, split, 0, unread)
        limit_unreadable(inventory, split, len(samples), missing)


def check_sample(data: SplitToCheck, sample: Sample) -> tuple[str, str, list[HashedFile]]:
    """The digest of ``verify`` and its files; or '', the reason why the sample is left out, and
    none. Raises ``UserError`` as it does."""
    try:
        digest, files = verify(data, sample)
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
    if class_of(inventory.spec.kind).is_indivisible:
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
        except UserError as error:  # a folder of several datasets may be without one of them
            state = "absent" if isinstance(error, UnfitCopy) else "broken"
            rows.append(DatasetState(spec.name, state, {}, spec.expected, str(error)))
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
                messages += describe_quality(data, workers, progress or Silent())
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
    messages += inventory.unlisted.notes()
    if train_list := spec.extra.get("train_list"):
        messages.append(f"train list: {train_list}")
    if state == "available":
        messages.append("no official counts declared")
    return state, counts, messages


def untrained_probes(kind: str) -> list[str]:
    """Names of the probes for a kind of dataset that need no train split."""
    probes = PROBES.load_entry_points().values()
    return [each.name for each in probes if each.kind == kind and "train" not in each.splits]
