"""The datasets of a run: found, checked and counted before hours of work start."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from benchmark.evaluation.plan import PlannedTask
from benchmark.execution.progress import reporter
from probes.datasets.base import PreparedDataset, Split
from probes.datasets.check import place, prepare


def prepare_data(
    tasks: Sequence[PlannedTask],
    placed: Mapping[str, Path],
    data_root: Path | None = None,
    partial: bool = False,
    num_workers: int = 2,
    known_only: bool = False,
) -> dict[str, PreparedDataset]:
    """Task name → its dataset; each dataset and set of splits is checked once, and the verdict is kept.

    Args:
        placed: dataset name → folder (``--data``, and what a suite made), before ``data_root``.
        partial: accept datasets that are not complete.
        known_only: write nothing; a dataset that was not looked at before is ``NotExamined``.

    Raises:
        UserError: a dataset is missing, incomplete or broken.
    """
    roots = {task.spec.name: place(task.spec, data_root, placed) for task in tasks}
    prepared: dict[tuple[str, tuple[Split, ...]], PreparedDataset] = {}
    for task in tasks:
        key = (task.spec.name, task.probe.splits)
        if key not in prepared:
            prepared[key] = prepare(
                task.spec, roots[task.spec.name], splits=task.probe.splits, partial=partial, workers=num_workers,
                progress=reporter(), known_only=known_only,
            )  # fmt: skip
    return {task.name: prepared[task.spec.name, task.probe.splits] for task in tasks}
