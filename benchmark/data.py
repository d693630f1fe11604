"""The datasets of a run: found, checked and counted before hours of work start."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from benchmark.execution.progress import reporter
from benchmark.plan import PlannedTask
from probes.datasets.base import PreparedDataset, Split
from probes.datasets.check import find_folder, prepare


@dataclass(frozen=True)
class DataChoice:
    """Where datasets are, and how much of them counts.

    Attributes:
        placed: dataset name → folder (``--data``, and what a suite made), before ``root``
            (``--data-root``).
        partial: accept datasets that are not complete.
        limit: images of the validation split that are scored; None for all.
    """

    placed: Mapping[str, Path] = field(default_factory=dict)
    root: Path | None = None
    partial: bool = False
    limit: int | None = None


def prepare_data(
    tasks: Sequence[PlannedTask], choice: DataChoice, num_workers: int = 2, known_only: bool = False
) -> dict[str, PreparedDataset]:
    """Task name → its dataset; each dataset and set of splits is checked once, and the verdict is
    kept.

    Args:
        known_only: write nothing; a dataset that was not looked at before is ``NotChecked``.

    Raises:
        UserError: a dataset is missing, incomplete or broken.
    """
    roots = {task.spec.name: find_folder(task.spec, choice.root, choice.placed) for task in tasks}
    prepared: dict[tuple[str, tuple[Split, ...]], PreparedDataset] = {}
    for task in tasks:
        key = (task.spec.name, task.probe.splits)
        if key not in prepared:
            prepared[key] = prepare(
                task.spec,
                roots[task.spec.name],
                splits={
                    split: choice.limit if split == "val" else None for split in task.probe.splits
                },
                partial=choice.partial,
                workers=num_workers,
                progress=reporter(),
                cached_only=known_only,
            )
    return {task.name: prepared[task.spec.name, task.probe.splits] for task in tasks}
