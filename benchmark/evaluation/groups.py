"""Tasks that have data to share – three probes of one dataset, depth and normals of the same photographs – run side by
side: each batch is decoded and encoded once, and every cell ends as if it had been alone."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from backbones import Backbone
from backbones.cliptex.protocols import Silent
from benchmark.evaluation.cell import Cell, cell_steps
from benchmark.evaluation.plan import PlannedTask
from benchmark.execution.progress import Lane
from probes.base import Context, SteppedProbe
from probes.datasets.base import PreparedDataset
from probes.lockstep import JointBar, drain, in_lockstep
from probes.stream import Table
from reports.tracking import Run, Tracker


def families(
    tasks: Sequence[PlannedTask],
    backbone: Backbone,
    config: Mapping[str, Any],
    data: Mapping[str, PreparedDataset],
    seed: int,
    device: torch.device,
) -> list[list[PlannedTask]]:
    """``tasks`` in groups that are run together, in the order of their first ones."""
    groups: dict[str, list[PlannedTask]] = {}
    for task in tasks:
        key = None
        if isinstance(task.probe, SteppedProbe) and len(tasks) > 1:
            context = Context(
                backbone, config, data[task.name], task.settings, seed, device, Path(), Silent(), Silent(), workers=0
            )
            try:
                key = task.probe.family(context)
            except Exception as error:  # it will say so itself, in its own run
                if getattr(error, "exit_code", None) == 2 or isinstance(error, OSError):
                    raise
        groups.setdefault(key or task.name, []).append(task)
    return list(groups.values())


def run_family(
    family: Sequence[PlannedTask],
    tracker: Tracker,
    parent: Run,
    backbone: Backbone,
    config: Mapping[str, Any],
    data: Mapping[str, PreparedDataset],
    seed: int,
    *,
    device: torch.device,
    workers: int,
    bar: Lane,
    ended: Callable[[PlannedTask, Cell | Exception], None],
) -> None:
    """Run the cells of ``family`` (see ``benchmark.evaluation.cell.cell_steps``), in lockstep.

    Args:
        ended: told of each cell, or of what it broke with, as soon as it ends. What it raises ends the others, whose runs
            are then KILLED and go on where they are another time, as with an interruption.
    """
    table, joint = Table(), JointBar(bar)
    tasks = {task.name: task for task in family}
    cells = {
        name: cell_steps(
            tracker, parent, backbone, config, task, data[name], seed, device=device, workers=workers,
            progress=joint.part(name), table=table,
        )
        for name, task in tasks.items()
    }  # fmt: skip

    def told(name: str, result: Cell | Exception) -> None:
        joint.drop(name)
        ended(tasks[name], result)

    drain(in_lockstep(cells, told))
