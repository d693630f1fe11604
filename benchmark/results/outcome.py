"""What a run ends with, and its JSON (the contract of ``run --json``)."""

from __future__ import annotations

import tempfile
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmark.cell import Cell
from benchmark.plan import PlannedTask
from benchmark.results.average import Average
from common.errors import UserError
from common.files import json_output_path
from common.secrets import hide_secrets
from reports.mlflow.run import Tracker


@dataclass(frozen=True)
class RunResult:
    """A run's cells, and where they are in MLflow.

    Attributes:
        run_ids: (backbone, seed) → its parent run; none for a backbone whose weights could not be
            made.
        average: of the suite's tasks, None where it has none.
    """

    suite: str
    tasks: Sequence[PlannedTask]
    cells: Sequence[Cell]
    run_ids: Mapping[tuple[str, int], str]
    tracker: Tracker
    average: Average | None = None

    @property
    def failed(self) -> list[Cell]:
        return [cell for cell in self.cells if cell.status == "failed"]


def as_json(result: RunResult) -> dict[str, Any]:
    """With several seeds ``backbones`` holds means, and ``by_seed`` each seed's values."""
    seeds = list(dict.fromkeys(cell.seed for cell in result.cells))
    names = list(dict.fromkeys(cell.backbone for cell in result.cells))
    by_seed: dict[str, dict] = {str(seed): {name: {} for name in names} for seed in seeds}
    values: dict[tuple[str, str, str], list[float]] = defaultdict(list)
    for cell in result.cells:
        for metric, value in cell.metrics.items():
            if np.isfinite(value):
                by_seed[str(cell.seed)][cell.backbone].setdefault(cell.task, {})[metric] = float(
                    value
                )
                values[cell.backbone, cell.task, metric].append(float(value))
    means: dict[str, dict] = {name: {} for name in names}
    for (name, task, metric), found in values.items():
        if len(found) == len(seeds):
            means[name].setdefault(task, {})[metric] = float(np.mean(found))
    ids = {
        seed: {name: result.run_ids[name, seed] for name in names if (name, seed) in result.run_ids}
        for seed in seeds
    }
    told: dict[str, Any] = {
        "suite": result.suite,
        "seed": seeds[0] if seeds else None,
        "backbones": means,
        "mlflow": {
            "tracking_uri": hide_secrets(result.tracker.uri),
            "experiment": result.tracker.experiment,
            "run_ids": ids[seeds[0]] if seeds else {},
        },
    }
    if len(seeds) > 1:
        told |= {"seeds": seeds, "by_seed": by_seed}
        told["mlflow"]["run_ids_by_seed"] = {str(seed): ids[seed] for seed in seeds}
    if result.average:
        told["average"] = _average_json(result, result.average)
    if missing := [each for cell in result.cells if (each := _missing(cell, result.tasks))]:
        told["holes"] = missing
    return told


def _average_json(result: RunResult, average: Average) -> dict[str, Any]:
    """What the average is called, its value for each backbone (the mean over seeds; None where a
    task has no number), and the tasks whose data are not there."""
    found: dict[str, list[float | None]] = defaultdict(list)
    for name, seed in dict.fromkeys((cell.backbone, cell.seed) for cell in result.cells):
        found[name].append(
            average.whole([c for c in result.cells if (c.backbone, c.seed) == (name, seed)])
        )
    means = {name: None if None in each else float(np.mean(each)) for name, each in found.items()}  # type: ignore[arg-type]
    return {
        "title": average.title,
        "tasks": len(average.tasks),
        "backbones": means,
        "absent": list(average.absent),
    }


def _missing(cell: Cell, tasks: Sequence[PlannedTask]) -> dict[str, Any] | None:
    """What of a cell has no value, and why; None for a complete one."""
    wanted = next(task.probe.metrics for task in tasks if task.name == cell.task)
    missing = [name for name in wanted if not np.isfinite(cell.metrics.get(name, np.nan))]
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


def must_be_writable(path: Path, option: str = "--json") -> None:
    """Raises ``UserError`` when the file could not be written when the work is done."""
    try:
        path = json_output_path(path)
    except UserError as error:
        raise UserError(f"{option} {error}") from None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path.parent):
            pass
    except OSError as error:
        raise UserError(
            f"{option} {path}: cannot write there ({error.strerror or error}); name another file"
        ) from None
