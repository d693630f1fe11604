"""What ``data check`` says: which datasets are there, how much of them, and what they are good for
as they are."""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from backbones.cliptex.protocols import Progress
from common.errors import UserError
from probes.datasets.base import DatasetSpec, Kind, Split
from probes.datasets.check import SPLITS, Inventory, known_names, place, prepare
from probes.registry import DATASETS

UNTRAINED: Mapping[Kind, str] = {  # what needs no train split
    "classification": "zero-shot",
    "image-text": "retrieval",
    "association": "zero-shot",
    "correspondence": "keypoints",
}


@dataclass(frozen=True)
class Row:
    """One line of ``data check``.

    Attributes:
        state: ``absent``, ``broken`` (no probe can run), ``partial`` (runs with ``--partial``),
            ``complete`` (the official counts) or ``available`` (there, of a dataset that declares
            no counts).
        found, expected: samples by split; ``expected`` is empty for a dataset that declares no
            counts.
        message: what is missing or wrong, or what should be known; empty when there is nothing to
            say.
    """

    name: str
    state: str
    found: Mapping[str, int] = field(default_factory=dict)
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
) -> list[Row]:
    """One row for each registered dataset (of those in ``only``) but those that a suite makes for
    itself; by names and counts only, or with every sample decoded when ``full``.

    Raises:
        UserError: a place in ``data_dirs`` is not there, or of no known dataset.
    """
    rows = []
    for spec in DATASETS.load_entry_points().values():
        if (spec.embedded and spec.name not in data_dirs) or (
            only is not None and spec.name not in only
        ):
            continue
        try:
            root = place(spec, data_root, data_dirs)
        except UserError:
            if spec.name in data_dirs or spec.folder in data_dirs or set(data_dirs) - known_names():
                raise
            hint = f"no folder {spec.folder}; put it there or pass --data {spec.name}=DIR"
            if deeper := sorted(data_root.glob(f"*/{spec.folder}")) if data_root else []:
                hint = f"found elsewhere: --data {spec.name}={deeper[0]}"
            rows.append(Row(spec.name, "absent", expected=spec.expected, message=hint))
            continue
        spec = spec.at(root)
        state, found, messages = look_at(spec, root, splits)
        if full and state != "broken":
            try:
                splits = [split for split in SPLITS if found.get(split)]
                data = prepare(
                    spec, root, splits=splits, partial=True, workers=workers, progress=progress
                )
                messages += [f"{path}: {reason}" for path, reason in data.skipped[:3]]
            except UserError as error:
                state = "broken"
                messages.append(str(error))
        rows.append(Row(spec.name, state, found, spec.expected, "; ".join(messages)))
    return rows


def look_at(
    spec: DatasetSpec, root: Path, splits: Sequence[Split] = SPLITS
) -> tuple[str, dict[str, int], list[str]]:
    """State, samples by split and messages (see ``Row``) of the copy of a dataset at ``root``,
    without decoding anything."""
    found: dict[str, int] = {}
    messages, complete = [], True
    for split in splits:
        try:
            inventory = Inventory.take(spec, root, [split])
        except UserError as error:
            messages.append(str(error))
            continue
        found[split] = len(inventory.present[split])
        complete &= inventory.is_complete()
        if inventory.missing[split] or not found[split]:
            messages.append(inventory.counts())
    if all(found.get(split) for split in splits):
        state = ("complete" if spec.expected else "available") if complete else "partial"
    elif found.get("val") and (runs := UNTRAINED.get(spec.kind)):
        state = "partial"
        messages.append(f"val alone: {runs} runs, nothing can be trained")
    else:
        state = "broken"
    if train_list := spec.extra.get("train_list"):
        messages.append(f"train list: {train_list}")
    if state == "available":
        messages.append("no official counts declared")
    return state, found, messages
