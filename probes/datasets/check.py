"""Where a dataset lies, whether it is complete, and whether every sample can be used – before hours
of work start."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from stat import S_ISDIR, S_ISLNK, S_ISREG
from typing import Any

from backbones.cliptex.protocols import Progress, Silent
from common.errors import UserError, nearest
from common.files import content_key, home, read_json_object, write_json
from probes.datasets.base import DatasetSpec, PreparedDataset, Sample, Split
from probes.datasets.layouts import must_not_lead_astray
from probes.datasets.verify import Unreadable, coco_truth, verify
from probes.features import content_hashes
from probes.features.members import state_of
from probes.registry import DATASETS

VERSION = 2  # raised whenever the checks change: old verdicts no longer count
SPLITS: tuple[Split, ...] = ("train", "val")
UNREADABLE_SHARE = 0.01  # more than this (and more than one sample) is an error
AT_ONCE = 1000  # samples whose results are written down together


class NotPlaced(UserError):
    """A dataset has no folder."""


class NotExamined(LookupError):
    """There is no verdict on this copy of a dataset yet."""


def place(spec: DatasetSpec, data_root: Path | None, data_dirs: Mapping[str, Path]) -> Path:
    """The folder of a dataset: ``--data NAME=DIR`` if given, else its folder under ``--data-root``.

    NAME is the dataset's name or its folder (``nyu`` places nyu-depth and nyu-normal). DIR is the
    dataset's own folder, or one that holds it in the usual tree (``DIR/VOCdevkit/VOC2012``).

    Raises:
        NotPlaced: no place given, or nothing there. UserError: a NAME that no dataset has, or one
            with no folder.
    """
    known = known_names() | {spec.name, spec.folder}
    for name in data_dirs:
        if name not in known:
            raise UserError(f"--data {name}=…: no dataset {name!r}; {nearest(name, known)}")
    if given := data_dirs.get(spec.name) or data_dirs.get(spec.folder):
        parts = Path(spec.folder).parts
        inside = [Path(given).joinpath(*parts[start:]) for start in range(len(parts) + 1)]
        inside[1:1] = [Path(given) / folder for folder in spec.also]
        if root := next((path for path in inside if path.is_dir()), None):
            return root
        raise UserError(f"--data {spec.name}={given}: no such folder")
    if data_root is None:
        raise NotPlaced(
            f"dataset {spec.name} needs a place: --data-root DIR (with DIR/{spec.folder}) or --data"
            f" {spec.name}=DIR"
        )
    for folder in (spec.folder, *spec.also):
        if (root := Path(data_root) / folder).is_dir():
            return root
    raise NotPlaced(
        f"dataset {spec.name} is not in {data_root}: no folder {spec.folder}; put it there or pass"
        f" --data {spec.name}=DIR"
    )


def prepare(
    spec: DatasetSpec,
    root: Path,
    *,
    splits: Sequence[Split] | Mapping[Split, int | None] = SPLITS,
    partial: bool = False,
    workers: int = 2,
    progress: Progress | None = None,
    known_only: bool = False,
) -> PreparedDataset:
    """List, count and decode every sample of the copy at ``root``. The verdict is kept: a second
    call only looks at names, sizes and times of the files.

    Args:
        splits: those that the probe uses (``val`` alone for zero-shot and retrieval); as a mapping
            with how many samples of it count, evenly spaced (None: all). With fewer than there are,
            the dataset is partial.
        partial: accept fewer samples than the official dataset has; what is left out then is part
            of the protocol.
        workers: decoding threads; never changes the result.
        known_only: a copy that was not looked at before is ``NotExamined``; nothing is read or
            written.
    Raises:
        UserError: something is missing, the dataset is not complete (without ``partial``), a split
            is empty, too many samples (more than 1 % of a split and more than one) cannot be read,
            or labels do not fit the declaration. One line, naming files.
    """
    root = Path(root)
    if not root.is_dir():
        raise UserError(
            f"dataset {spec.name}: no folder {root}; pass --data-root DIR or --data {spec.name}=DIR"
        )
    spec = spec.at(root)
    inventory = Inventory.take(spec, root, splits)
    complete = inventory.is_complete()
    if not complete and not (partial or spec.counts_itself):
        raise UserError(
            f"{spec.name} is not complete: {inventory.counts()}; "
            f"get the rest or pass --partial to run on what is there (in {root})"
        )
    inventory.must_be_disjoint_and_filled()

    identity = {"version": VERSION, "root": str(root.resolve()), "files": inventory.stats}
    identity |= {"spec": protocol(spec, root), "expected": spec.expected}
    cache = home() / "datasets" / f"{spec.name}-{content_key(identity)}.json"
    verdict = read_json_object(cache)
    if not verdict and known_only:
        raise NotExamined(spec.name)
    if not verdict:
        journal = Journal(cache.with_suffix(".part"))
        verdict = examine(inventory, journal, workers, progress or Silent())
        write_json(cache, verdict)
        journal.path.unlink(missing_ok=True)

    skipped = [(path, reason) for split in splits for path, reason in verdict["skipped"][split]]
    left_out = {path for path, _ in skipped}
    samples: dict[str, list[Sample]] = {
        s: [each for each in inventory.present[s] if each.image not in left_out] for s in splits
    }
    partial = not complete or bool(inventory.left_out)
    return PreparedDataset(spec, root, samples, tuple(skipped), verdict["fingerprint"], partial)


def protocol(spec: DatasetSpec, root: Path) -> dict[str, Any]:
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
    """What is listed and what is there, without opening an image.

    Attributes:
        present: split → samples whose files are all there, in the official order.
        missing: split → files that are listed but not there.
        stats: (relative path, bytes, mtime in ns) of every file; the key of the kept verdict.
        links: where links lead → their relative path.
        left_out: split → how many samples are, on purpose.
    """

    spec: DatasetSpec
    root: Path
    present: dict[Split, list[Sample]] = field(default_factory=dict)
    missing: dict[Split, list[str]] = field(default_factory=dict)
    stats: list[tuple[str, int, int]] = field(default_factory=list)
    links: dict[str, str] = field(default_factory=dict)
    left_out: dict[Split, int] = field(default_factory=dict)

    @classmethod
    def take(
        cls, spec: DatasetSpec, root: Path, splits: Sequence[Split] | Mapping[Split, int | None]
    ) -> Inventory:
        """List the samples (see ``prepare``) and see whether their files are there. Raises
        ``UserError`` naming a missing list or folder."""
        inventory = cls(spec, root)
        limits = splits if isinstance(splits, Mapping) else dict.fromkeys(splits)
        dense = spec.kind in ("segmentation", "depth", "normals")
        for split, limit in limits.items():
            try:
                listed = spec.list_samples(root, split)
            except UserError as error:
                raise UserError(f"{spec.name}: {error}") from error
            if limit is not None and limit < len(listed):
                if spec.kind in ("association", "correspondence"):
                    told = f"--limit: {spec.name} is scored on what is between images"
                    raise UserError(f"{told}; leave it out with --task")
                inventory.left_out[split] = len(listed) - limit
                listed = [listed[place * len(listed) // limit] for place in range(limit)]
            inventory.present[split], inventory.missing[split] = [], []
            for sample in listed:
                files = [sample.image, sample.target] if dense else [sample.image]
                gone = [path for path in files if not inventory.noted(split, path)]
                if gone:
                    inventory.missing[split].append(gone[0])
                else:
                    inventory.present[split].append(sample)
            if spec.kind == "detection":
                inventory.noted(split, spec.annotations[split])
            elif not dense:  # the ground truth is in the listing, not in files of its own
                targets = content_key([sample.truth for sample in listed])
                inventory.stats.append((f"{split}:{targets}", len(listed), 0))
        return inventory

    def noted(self, split: Split, path: str) -> bool:
        """Whether a file is there. Raises ``UserError`` for one that is outside of the root, or
        that reading would not end of."""
        where = f"{self.root}/{path}"
        if path.startswith("/") or ".." in path.split("/"):
            raise UserError(
                f"{self.spec.name}: {path!r} is no place within {self.root}; mend the list that"
                " names it"
            )
        try:
            found = (
                None if ".tar/" in path else os.lstat(where)
            )  # a Path for each of a million files takes minutes
            if found and S_ISLNK(found.st_mode):
                found = os.stat(where)  # noqa: PTH116
                must_not_lead_astray(self.root, path, is_folder=False)
                target = os.path.realpath(where)
                if (other := self.links.setdefault(target, path)) != path:
                    raise UserError(
                        f"{self.spec.name}: {path} and {other} are links to the same file;"
                        " remove one"
                    )
            size, time, _ = state_of(where)
        except UserError:
            raise
        except (OSError, ValueError):
            return False
        if found and not S_ISREG(found.st_mode) and not S_ISDIR(found.st_mode):
            raise UserError(
                f"{self.spec.name}: {path} in {self.root} is no regular file; remove it"
            )
        self.stats.append((f"{split}:{path}", size, time))
        return found is None or S_ISREG(found.st_mode)

    def is_complete(self) -> bool:
        """Whether the counts are the official ones; a dataset that declares none is complete by
        definition."""
        counts = {
            split: len(samples) + self.left_out.get(split, 0)
            for split, samples in self.present.items()
        }
        return all(count == self.spec.expected.get(split, count) for split, count in counts.items())

    def counts(self) -> str:
        """``train 103 of 1464, val 60 of 1449; no JPEGImages/x.jpg``."""
        text = ", ".join(
            f"{split} {len(samples)}"
            + (f" of {self.spec.expected[split]}" if split in self.spec.expected else "")
            for split, samples in self.present.items()
        )
        gone = [path for paths in self.missing.values() for path in paths]
        return text + (f"; {len(gone)} listed files missing, such as {gone[0]}" if gone else "")

    def must_be_disjoint_and_filled(self) -> None:
        """No split is empty, and no image occurs twice: a model must not be scored on what it was
        trained on."""
        for split, samples in self.present.items():
            if not samples:
                raise UserError(
                    f"{self.spec.name}: split {split!r} is empty in {self.root}; {self.counts()}"
                )
        seen: dict[str, Split] = {}
        for split, samples in self.present.items():
            for sample in samples:
                if (other := seen.get(sample.image)) is not None:
                    where = (
                        f"in both {other} and {split}"
                        if other != split
                        else f"listed twice in {split}"
                    )
                    raise UserError(f"{self.spec.name}: {sample.image} is {where}; mend the lists")
                seen[sample.image] = split
        for target, link in self.links.items():
            if (image := os.path.relpath(target, os.path.realpath(self.root))) in seen:
                raise UserError(
                    f"{self.spec.name}: {link} is a link to {image}, which is listed too;"
                    " remove one"
                )


class Journal:
    """What was found out about single samples, so that a long check that is cut short goes on where
    it stopped."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.known: dict[str, tuple[str, str]] = {}
        if path.is_file():
            for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
                with suppress(
                    ValueError, TypeError
                ):  # the line that was being written when the check was cut short
                    name, digest, reason = json.loads(line)
                    self.known[name] = (digest, reason)

    def note(self, found: Mapping[str, tuple[str, str]]) -> None:
        """Remember {sample: (digest, reason)}. Raises ``UserError`` when it cannot be written."""
        self.known.update(found)
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("a", encoding="utf-8") as file:
                file.writelines(
                    json.dumps([name, *result]) + "\n" for name, result in found.items()
                )
        except OSError as error:
            raise UserError(
                f"cannot write {self.path}: {error.strerror or error}; free some space"
            ) from error


def examine(
    inventory: Inventory, journal: Journal, workers: int, progress: Progress
) -> dict[str, Any]:
    """Decode and hash everything: {"fingerprint": hash, "skipped": {split: [(path, reason)]}}."""
    spec, root = inventory.spec, inventory.root
    classes = len(spec.class_names(root))
    digests: dict[str, list[str]] = {}
    skipped: dict[str, list[tuple[str, str]]] = {}
    progress.start(f"checking {spec.name}", sum(map(len, inventory.present.values())))
    for split, samples in inventory.present.items():
        truth = coco_truth(spec, root, split) if spec.kind == "detection" else {}
        check_captions(spec, split, samples)

        def look(sample: Sample, truth: Mapping[Any, Any] = truth) -> tuple[str, str]:
            try:
                return verify(spec, classes, root, sample, truth), ""
            except Unreadable as error:
                return "", str(error)

        pending = [sample for sample in samples if f"{split}:{sample.image}" not in journal.known]
        progress.advance(len(samples) - len(pending))
        for start in range(0, len(pending), AT_ONCE):
            part, found = pending[start : start + AT_ONCE], dict[str, tuple[str, str]]()
            with ThreadPoolExecutor(
                max(1, workers)
            ) as pool:  # decoding and hashing free the interpreter
                try:
                    for sample, result in zip(part, pool.map(look, part), strict=True):
                        found[f"{split}:{sample.image}"] = result
                        progress.advance()
                finally:
                    journal.note(found)
                    # what keeps features of these images need not read them for it
                    content_hashes.save()
        results = [(sample.image, *journal.known[f"{split}:{sample.image}"]) for sample in samples]
        digests[split] = [digest for _, digest, reason in results if not reason]
        bad = [(image, reason) for image, _, reason in results if reason]
        if (
            not spec.expected
        ):  # in a part of an official dataset, files that are not there are what 'partial' means
            bad += [(path, "missing") for path in inventory.missing[split]]
        total = len(digests[split]) + len(bad)
        if len(bad) > max(1, int(UNREADABLE_SHARE * total)) or not digests[split]:
            named = ", ".join(f"{path} ({reason})" for path, reason in bad[:3])
            raise UserError(
                f"{spec.name}: {len(bad)} of {total} {split} samples cannot be used, more than 1 %:"
                f" {named}; get them again or take them out (in {root})"
            )
        skipped[split] = bad
    return {
        "fingerprint": content_key([protocol(spec, root), digests], length=32),
        "skipped": skipped,
    }


def check_captions(spec: DatasetSpec, split: Split, samples: Sequence[Sample]) -> None:
    """Retrieval figures are comparable only over the same captions: five an image in Flickr30k, all
    5,000 of them."""
    if (wanted := spec.extra.get("captions_per_image")) is None:
        return
    for sample in samples:
        if (found := len(sample.target)) != wanted:
            raise UserError(
                f"{spec.name}: {sample.image} in {split} has {found} captions instead of {wanted}; "
                "get the annotation file again"
            )


def known_names() -> set[str]:
    return {
        name
        for spec in DATASETS.load_entry_points().values()
        for name in (spec.name, spec.folder, *spec.also)
    }
