"""The mean of a suite's main metrics, for suites that publish one: over all tasks, or none."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from benchmark.records import Cell, PlannedTask
from benchmark.suites.registry import Suite
from probes.datasets.base import PreparedDataset


@dataclass(frozen=True)
class Average:
    """What a suite's average is computed from.

    Attributes:
        title: its name.
        tasks: all tasks of the suite.
        main_metrics: task → main metric, of the tasks that run.
        partial: tasks whose data are incomplete.
        absent: tasks that have no data.
    """

    title: str
    tasks: Sequence[str]
    main_metrics: Mapping[str, str]
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
        """The average of a suite, None if it has none."""
        if not suite.average:
            return None
        return cls(
            suite.average,
            list(suite.tasks),
            {task.name: task.main_metric for task in tasks},
            [name for name, dataset in data.items() if dataset.partial],
            [task.name for task in absent],
        )

    def values(self, cells: Sequence[Cell]) -> list[float]:
        """The finite main metrics of one backbone and seed."""
        metrics = {cell.task: cell.metrics for cell in cells}
        values = [
            metrics[task].get(main, np.nan)
            for task, main in self.main_metrics.items()
            if task in self.tasks and task in metrics
        ]
        return [value for value in values if np.isfinite(value)]

    def mean(self, cells: Sequence[Cell]) -> float | None:
        """The average of one backbone and seed; None if a task has no number."""
        values = self.values(cells)
        return float(np.mean(values)) if len(values) == len(self.tasks) else None

    def lines(self, cells: Sequence[Cell]) -> list[str]:
        """One line for each backbone and seed that has a number."""
        rows: dict[tuple[str, int], list[Cell]] = {}
        for cell in cells:
            rows.setdefault((cell.backbone, cell.seed), []).append(cell)
        lines = []
        for (backbone, seed), row in rows.items():
            values = self.values(row)
            count, title = len(values), f"{backbone} · seed {seed}"
            if self.mean(row) is not None:
                note = f" ({len(self.partial)} of them on partial data)" if self.partial else ""
                lines.append(f"{self.title} · {title}: {np.mean(values):.2f}{note}")
            elif values:
                lines.append(
                    f"mean of {count} of {len(self.tasks)} tasks (not the average) · {title}:"
                    f" {np.mean(values):.2f}"
                )
        return lines
