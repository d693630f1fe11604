"""``data check``: which datasets are in a folder, how complete they are, and which probes run on
them."""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from cliptex_common.errors import UserError
from cliptex_common.progress import Progress
from probes.checks.check import SPLITS, DatasetNotFound, Inventory, find_folder, overlap, prepare
from probes.datasets.base import DatasetSpec, Split
from probes.registry import DATASETS, PROBES


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
    """One row for each registered dataset (of those in ``only``), by names and counts of
    ``splits``; with every sample decoded if ``full``. Generated datasets are left out unless they
    are in ``data_dirs``.

    Raises:
        UserError: a folder in ``data_dirs`` does not exist, or belongs to no dataset.
    """
    rows = []
    for spec in DATASETS.load_entry_points().values():
        if only is not None and spec.name not in only:
            continue
        if spec.is_generated and spec.name not in data_dirs:
            continue
        try:
            root = find_folder(spec, data_root, data_dirs)
        except DatasetNotFound:
            hint = f"no folder {spec.folder}; put it there or pass --data {spec.name}=DIR"
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
