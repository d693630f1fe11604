"""What a run returns, and its JSON (the contract of ``run --json``)."""

from __future__ import annotations

import tempfile
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmark.records import Cell, PlannedTask
from benchmark.results.average import Average
from common.errors import UserError
from common.files import json_output_path
from common.secrets import hide_secrets
from reports.mlflow.run import Tracker


@dataclass(frozen=True)
class RunResult:
    """A run's cells and where they are in MLflow.

    Attributes:
        run_ids: (backbone, seed) → its parent run; absent if its weights could not be made.
        average: of the suite's tasks, None if it has none.
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
    """The result as JSON; with several seeds ``backbones`` holds means and ``by_seed`` the values
    of each seed."""
    seeds = list(dict.fromkeys(cell.seed for cell in result.cells))
    names = list(dict.fromkeys(cell.backbone for cell in result.cells))
    by_seed: dict[str, dict] = {str(seed): {name: {} for name in names} for seed in seeds}
    values: dict[tuple[str, str, str], list[float]] = defaultdict(list)
    for cell in result.cells:
        for metric, value in cell.metrics.items():
            if np.isfinite(value):
                row = by_seed[str(cell.seed)][cell.backbone].setdefault(cell.task, {})
                row[metric] = float(value)
                values[cell.backbone, cell.task, metric].append(float(value))
    means: dict[str, dict] = {name: {} for name in names}
    for (name, task, metric), of_seeds in values.items():
        if len(of_seeds) == len(seeds):
            means[name].setdefault(task, {})[metric] = float(np.mean(of_seeds))
    run_ids: dict[str, dict[str, str]] = {str(seed): {} for seed in seeds}
    for (name, seed), run_id in result.run_ids.items():
        run_ids[str(seed)][name] = run_id
    document: dict[str, Any] = {
        "suite": result.suite,
        "seed": seeds[0] if seeds else None,
        "backbones": means,
        "mlflow": {
            "tracking_uri": hide_secrets(result.tracker.uri),
            "experiment": result.tracker.experiment,
            "run_ids": run_ids[str(seeds[0])] if seeds else {},
        },
    }
    if len(seeds) > 1:
        document |= {"seeds": seeds, "by_seed": by_seed}
        document["mlflow"]["run_ids_by_seed"] = run_ids
    if result.average:
        document["average"] = _average_json(result, result.average)
    incomplete = [_missing_metrics(cell, result.tasks) for cell in result.cells]
    if any(incomplete):
        document["holes"] = [entry for entry in incomplete if entry]
    return document


def _average_json(result: RunResult, average: Average) -> dict[str, Any]:
    """The average of each backbone (its mean over seeds; None if a task has no number)."""
    rows: dict[str, dict[int, list[Cell]]] = defaultdict(lambda: defaultdict(list))
    for cell in result.cells:
        rows[cell.backbone][cell.seed].append(cell)
    means: dict[str, float | None] = {}
    for name, seeds in rows.items():
        averages = [average.mean(cells) for cells in seeds.values()]
        complete = [value for value in averages if value is not None]
        means[name] = float(np.mean(complete)) if len(complete) == len(averages) else None
    return {
        "title": average.title,
        "tasks": len(average.tasks),
        "backbones": means,
        "absent": list(average.absent),
    }


def _missing_metrics(cell: Cell, tasks: Sequence[PlannedTask]) -> dict[str, Any] | None:
    """The metrics that a cell lacks, and why; None if it is complete."""
    metrics = next(task.probe.metrics for task in tasks if task.name == cell.task)
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
