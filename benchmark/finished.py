"""Cells without computing them: those that are finished, in MLflow, and those that have no result.

Importing this does not import torch.
"""

from __future__ import annotations

import shutil
import traceback
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from filelock import Timeout

from benchmark.progress import console
from benchmark.tasks import BackboneInfo, PlannedTask, StoredHeads
from cliptex_common.errors import RunFailed, error_summary, user_error_message
from cliptex_common.files import home, lock_path, locked, read_json_object
from reports.records import TAGS, Cell, cell_key
from reports.store import PARENT_TAG
from reports.tracking import Tracker

RUN_FILE = "cell.json"  # in a cell's scratch folder: the MLflow run that it was started in


def find_cells(
    tracker: Tracker,
    backbone: BackboneInfo,
    tasks: Sequence[PlannedTask],
    conditions: Mapping[str, Any],
    seed: int,
) -> dict[str, Cell]:
    """Task → cell, of tasks that are finished; see ``PlannedTask.conditions``. Raises as
    ``cells_of_heads``."""
    heads = cells_of_heads(tracker, backbone, tasks, conditions, seed)
    keys = backbone.cell_keys(tasks, conditions, seed, heads)
    return finished_cells(tracker, keys, backbone)


def cells_of_heads(
    tracker: Tracker,
    backbone: BackboneInfo,
    tasks: Sequence[PlannedTask],
    conditions: Mapping[str, Any],
    seed: int,
    parent_id: str = "",
) -> dict[str, Cell]:
    """Task → the finished cell of another task whose head it uses; ``parent_id``: see
    ``finished_cells``. Raises ``UserError`` where none of the stored heads is of this backbone and
    seed."""
    stored, keys = {}, {}
    for task in tasks:
        if isinstance(task.scored_with, StoredHeads):
            stored[task.name] = task.scored_with.cell_of(backbone, seed)
        elif task.uses_head:
            trained = conditions[task.name]["head"]  # those of the task that trains the head
            keys[task.name] = cell_key(backbone.identity, trained, seed)
    return finished_cells(tracker, keys, backbone, parent_id) | stored


def finished_cells(
    tracker: Tracker, keys: Mapping[str, str], backbone: BackboneInfo, parent_id: str = ""
) -> dict[str, Cell]:
    """Task → cell, of tasks that are finished.

    Args:
        keys: task → identity of its cell.
        backbone: whose column they are for; it may have been probed under another name.
        parent_id: accept only runs under this parent run; '' accepts any.
    """
    cells = {}
    for task, key in keys.items():
        tags = {TAGS["key"]: key, **({PARENT_TAG: parent_id} if parent_id else {})}
        cell = tracker.finished(**tags)
        if isinstance(cell, Cell):  # no run whose tags cannot be read
            _remove_scratch(cell)
            column = {"backbone": backbone.column, "network": backbone.network}
            update = {**column, "status": "cached", "costs": {}}
            cells[task] = cell.model_copy(update=update)
    return cells


def _remove_scratch(cell: Cell) -> None:
    """Remove the scratch folder of a process that was killed after the cell was finished."""
    folder = work_dir(cell.key)
    if read_json_object(folder / RUN_FILE).get("run") == cell.run_id:
        with suppress(Timeout), locked(lock_path("cell", cell.key), wait=False):
            shutil.rmtree(folder, ignore_errors=True)


def work_dir(key: str) -> Path:
    """A cell's scratch folder, from which it resumes; removed when the cell is finished."""
    return home() / "work" / key


def report_failure(error: Exception) -> str:
    """Print the traceback of a bug; returns one line for a failed cell. An error that the user can
    correct is raised again: it ends the command."""
    if user_error_message(error) is not None:
        raise error
    if not isinstance(error, RunFailed):
        console.print("".join(traceback.format_exception(error)))
    return error_summary(error)


def missing_cells(
    backbone: str, seed: int, reasons: Mapping[str, str], status: str = "failed"
) -> dict[str, Cell]:
    """Task → cell, of tasks that have no result; ``reasons``: task → why."""
    return {
        task: Cell(backbone=backbone, task=task, seed=seed, status=status, reason=reason)
        for task, reason in reasons.items()
    }
