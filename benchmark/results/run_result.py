"""What a run returns, and its JSON (the contract of ``run --json``)."""

from __future__ import annotations

import tempfile
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmark.probing.records import PlannedTask
from benchmark.suites.registry import Suite
from cliptex_common.errors import UserError
from cliptex_common.files import json_output_path
from cliptex_common.secrets import hide_secrets
from probes.registry import find_task
from reports.cell import Cell
from reports.mlflow.run import Tracker


@dataclass(frozen=True)
class RunResult:
    """A run's cells and where they are in MLflow.

    Attributes:
        cells: their backbones are the names of columns (``reports.selection.weights_labels``).
        run_ids: (backbone, seed) → its parent run; absent if its weights cannot be made or loaded
            or its parent run cannot be written (all its cells are failed).
        absent: tasks of the suite that have no data.
    """

    suite: Suite
    tasks: Sequence[PlannedTask]
    cells: Sequence[Cell]
    run_ids: Mapping[tuple[str, int], str]
    tracker: Tracker
    absent: Sequence[PlannedTask] = ()

    @property
    def failed(self) -> list[Cell]:
        return [cell for cell in self.cells if cell.status == "failed"]

    @property
    def backbones(self) -> list[str]:
        return list(dict.fromkeys(cell.backbone for cell in self.cells))

    @property
    def seeds(self) -> list[int]:
        return list(dict.fromkeys(cell.seed for cell in self.cells))

    def seeds_of(self, backbone: str) -> list[int]:
        """Fewer than ``seeds`` where each seed has weights, and a column, of its own."""
        return list(dict.fromkeys(cell.seed for cell in self.cells if cell.backbone == backbone))

    def means(self) -> dict[str, dict[str, dict[str, float]]]:
        """Backbone → task → metric → mean over the seeds; without metrics that a seed lacks."""
        values = defaultdict[tuple[str, str, str], list[float]](list)
        for cell in self.cells:
            for metric, value in cell.metrics.items():
                if np.isfinite(value):
                    values[cell.backbone, cell.task, metric].append(value)
        means: dict[str, dict] = {name: {} for name in self.backbones}
        for (name, task, metric), of_seeds in values.items():
            if len(of_seeds) == len(self.seeds_of(name)):
                means[name].setdefault(task, {})[metric] = float(np.mean(of_seeds))
        return means

    def average(self, backbone: str, seed: int) -> float | None:
        """``suite_average`` of a backbone and seed."""
        cells = [c for c in self.cells if (c.backbone, c.seed) == (backbone, seed)]
        return suite_average(self.suite, cells)


def suite_average(suite: Suite, cells: Sequence[Cell]) -> float | None:
    """The mean of the main metrics of all the suite's tasks, of one backbone and seed; None if the
    suite publishes no average or a task has no number."""
    if not suite.average:
        return None
    metrics = {cell.task: cell.metrics for cell in cells}
    values = []
    for task in suite.tasks:
        main = next(iter(find_task(task)[1].metrics))
        values.append(metrics.get(task, {}).get(main, np.nan))
    mean = float(np.mean(values))
    return mean if np.isfinite(mean) else None


def as_json(result: RunResult) -> dict[str, Any]:
    """The result as JSON; with several seeds ``backbones`` holds means and ``by_seed`` the values
    of each seed."""
    seeds, names = result.seeds, result.backbones
    by_seed: dict[str, dict] = {str(seed): {name: {} for name in names} for seed in seeds}
    for cell in result.cells:
        finite = {name: float(value) for name, value in cell.metrics.items() if np.isfinite(value)}
        if finite:
            by_seed[str(cell.seed)][cell.backbone][cell.task] = finite
    run_ids: dict[str, dict[str, str]] = {str(seed): {} for seed in seeds}
    for (name, seed), run_id in result.run_ids.items():
        run_ids[str(seed)][name] = run_id
    document: dict[str, Any] = {
        "suite": result.suite.name,
        "seed": seeds[0],
        "backbones": result.means(),
        "mlflow": {
            "tracking_uri": hide_secrets(result.tracker.uri),
            "experiment": result.tracker.experiment,
            "run_ids": run_ids[str(seeds[0])],
        },
    }
    if len(seeds) > 1:
        document |= {"seeds": seeds, "by_seed": by_seed}
        document["mlflow"]["run_ids_by_seed"] = run_ids
    if result.suite.average:
        averages = {
            name: [result.average(name, seed) for seed in result.seeds_of(name)] for name in names
        }
        document["average"] = {
            "title": result.suite.average,
            "tasks": len(result.suite.tasks),
            "backbones": {
                name: None if None in of_seeds else float(np.mean(of_seeds))  # type: ignore[arg-type]
                for name, of_seeds in averages.items()
            },
            "absent": [task.name for task in result.absent],
        }
    if incomplete := list(filter(None, map(_missing_metrics, result.cells))):
        document["holes"] = incomplete
    return document


def _missing_metrics(cell: Cell) -> dict[str, Any] | None:
    """The metrics that a cell lacks, and why; None if it is complete."""
    metrics = find_task(cell.task)[1].metrics
    missing = [name for name in metrics if not np.isfinite(cell.metrics.get(name, np.nan))]
    if not missing:
        return None
    ran = cell.status in ("done", "cached")
    return {
        "backbone": cell.backbone,
        "task": cell.task,
        "seed": cell.seed,
        "metrics": missing,
        "status": "no value" if ran else cell.status,
        "reason": "undefined on this data" if ran else cell.reason,
    }


def check_writable(path: Path, option: str = "--json") -> None:
    """Raise ``UserError`` if the file could not be written at the end of the work."""
    try:
        path = json_output_path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path.parent):
            pass
    except UserError as error:
        raise UserError(f"{option} {error}") from None
    except OSError as error:
        raise UserError(
            f"{option} {path}: cannot write there ({error.strerror or error}); name another file"
        ) from None
