"""Find a dataset, count its samples and decode each of them, before hours of work start."""

from __future__ import annotations

import functools
import json
from collections.abc import Collection, Hashable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cliptex_common.errors import UserError, suggest
from cliptex_common.files import content_key, home, make_folder, read_json_object, write_json
from cliptex_common.progress import Progress, Silent
from probes.checks.verify import coco_images, verify
from probes.datasets import layouts
from probes.datasets.base import DatasetSpec, PreparedDataset, Sample, Split, Unreadable
from probes.dense.tasks import DENSE_TASKS
from probes.features.content_hashes import HashedFile, content_hashes, store_hashes
from probes.features.members import state_of
from probes.registry import DATASETS

VERSION = 3  # raised whenever the checks change: older results no longer count
SPLITS: tuple[Split, ...] = ("train", "val")
ALL: Mapping[Split, int | None] = dict.fromkeys(SPLITS)
MAX_UNREADABLE = 0.01  # of a split; one sample is always accepted
LINKED = ("video", "object-views", "scene-views")  # kinds of which no sample may be unreadable
# kinds that are scored on relations between images, which ``--limit`` would break
RELATIONS = ("association", "correspondence", "instance-retrieval", *LINKED)
CHUNK = 1000  # samples whose hashes are stored together


class DatasetNotFound(UserError):
    """A dataset has no folder."""


class NotChecked(LookupError):
    """This copy of a dataset has not been checked yet."""


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
    raise DatasetNotFound(
        f"dataset {spec.name} is not in {data_root}: no folder {spec.folder}; put it there or pass"
        f" --data {spec.name}=DIR"
    )


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
    """List, count and decode every sample of the copy at ``root``. The result is cached: a second
    call only compares names, sizes and times of the files.

    Args:
        splits: that the probe uses (``val`` alone for zero-shot and retrieval) → number of samples
            to take, evenly spaced (None: all).
        partial: accept fewer samples than the official dataset has.
        workers: decoding threads; they never change the result.
        cached_only: raise ``NotChecked`` instead of checking.

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

    identity = {"version": VERSION, "root": str(root.resolve()), "files": inventory.stats}
    identity |= {"spec": content_identity(spec, root), "expected": spec.expected}
    identity |= DATASETS.origin(spec.name)
    cache = home() / "datasets" / f"{spec.name}-{content_key(identity)}.json"
    result = read_json_object(cache)
    if not result:
        if cached_only:
            raise NotChecked(spec.name)
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
        spec,
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
        links: that were left out (``layouts.LEFT_OUT``).
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
        layouts.LEFT_OUT.set(self.links)
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
        hashes[split] = content_hashes([root / image for image in usable])
    return {
        "fingerprint": content_key([content_identity(spec, root), digests], length=32),
        "skipped": skipped,
        "notes": [*overlap(hashes), *inventory.link_notes()],
    }


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
    accepted, limit = max(1, int(MAX_UNREADABLE * total)), ", more than 1 %"
    if inventory.spec.kind in LINKED:
        accepted, limit = 0, ""
    if usable and len(skipped) <= accepted:
        return
    examples = ", ".join(f"{path} ({reason})" for path, reason in skipped[:3])
    raise UserError(
        f"{inventory.spec.name}: {len(skipped)} of {total} {split} samples cannot be used{limit}:"
        f" {examples}; get them again or remove them (in {inventory.root})"
    )
