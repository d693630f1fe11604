"""The mean of a suite's main metrics, where that is a figure of its own: over all its tasks, or it
is not called so."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from benchmark.cell import Cell
from benchmark.plan import PlannedTask
from benchmark.suites.registry import Suite
from common.errors import UserError
from probes.datasets.base import PreparedDataset
from probes.datasets.check import DatasetNotFound, find_folder

SHOWN = 6  # names of missing folders in a message


def split_by_place(
    suite: Suite, tasks: Sequence[PlannedTask], data_root: Path | None, placed: Mapping[str, Path]
) -> tuple[list[PlannedTask], list[PlannedTask]]:
    """Tasks whose dataset has a folder, and the others.

    Raises:
        UserError: none has one.
    """
    there, absent = [], []
    for task in tasks:
        try:
            find_folder(task.spec, data_root, placed)
            there.append(task)
        except DatasetNotFound:
            absent.append(task)
    if not there:
        where = f"in {data_root}" if data_root else "named: give --data-root DIR"
        raise UserError(
            f"suite {suite.name!r}: none of its {len(tasks)} datasets is {where}; its folders are"
            f" {folders(absent)}"
        )
    return there, absent


def folders(tasks: Sequence[PlannedTask]) -> str:
    """``wds_cifar10, wds_mnist and 3 more``."""
    names = list(dict.fromkeys(task.spec.folder for task in tasks))
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more


@dataclass(frozen=True)
class Average:
    """What a suite's average is computed from.

    Attributes:
        title: what it is called where no task is missing.
        tasks: names of all tasks of the suite.
        main: task → its main metric, of those that run; partial: those whose data are a part of the
            official ones.
        absent: names of the tasks whose data are not there.
    """

    title: str
    tasks: Sequence[str]
    main: Mapping[str, str]
    partial: Sequence[str] = ()
    absent: Sequence[str] = ()

    @classmethod
    def of(
        cls,
        suite: Suite,
        tasks: Sequence[PlannedTask],
        data: Mapping[str, PreparedDataset],
        absent: Sequence[PlannedTask],
    ) -> Average | None:
        """None where the suite has none."""
        if not suite.average:
            return None
        main = {task.name: next(iter(task.probe.metrics)) for task in tasks}
        partial = [name for name, found in data.items() if found.partial]
        return cls(suite.average, list(suite.tasks), main, partial, [task.name for task in absent])

    def values(self, cells: Sequence[Cell]) -> list[float]:
        """The main metrics that one backbone and seed has."""
        found = {
            cell.task: cell.metrics.get(self.main[cell.task], np.nan)
            for cell in cells
            if cell.task in self.main
        }
        return [value for name, value in found.items() if name in self.tasks and np.isfinite(value)]

    def whole(self, cells: Sequence[Cell]) -> float | None:
        """The average of one backbone and seed; None where a task has no number."""
        values = self.values(cells)
        return float(np.mean(values)) if len(values) == len(self.tasks) else None

    def lines(self, cells: Sequence[Cell]) -> list[str]:
        """What to say of each backbone and seed."""
        found = []
        for name, seed in dict.fromkeys((cell.backbone, cell.seed) for cell in cells):
            mine = [cell for cell in cells if (cell.backbone, cell.seed) == (name, seed)]
            values, who = self.values(mine), f"{name} · seed {seed}"
            if self.whole(mine) is not None:
                parts = (
                    f" ({len(self.partial)} of them on parts of their data)" if self.partial else ""
                )
                found.append(f"{self.title} · {who}: {np.mean(values):.2f}{parts}")
            elif values:
                found.append(
                    f"mean of {len(values)} of {len(self.tasks)} tasks (not the average) · {who}:"
                    f" {np.mean(values):.2f}"
                )
        return found
