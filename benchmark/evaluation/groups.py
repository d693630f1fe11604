"""Task groups: tasks of one backbone and seed that are one unit of work, because they read the same images."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from backbones.cliptex.protocols import Silent
from backbones.errors import users_line
from backbones.files import content_key
from benchmark.evaluation.cell import Cell, CellContext, cell_steps
from benchmark.evaluation.plan import PlannedTask
from benchmark.execution.progress import reporter
from probes.base import Context, SteppedProbe
from probes.datasets.base import PreparedDataset
from probes.runner.lockstep import JointBar, drain, in_lockstep
from probes.runner.stream import Table


def task_groups(tasks: Sequence[PlannedTask], data: Mapping[str, PreparedDataset]) -> list[list[PlannedTask]]:
    """``tasks`` in groups, each a unit of work, in the order of their first ones: those that read photographs of the same names
    go together (three probes of VOC; depth and normals of NYU), a detector alone."""
    groups: dict[str, list[PlannedTask]] = {}
    for task in tasks:
        photographs = {split: [Path(s.image).stem for s in found] for split, found in data[task.name].samples.items()}
        alone = task.spec.kind == "detection"
        groups.setdefault(task.name if alone else content_key(photographs.get("val", photographs)), []).append(task)
    return list(groups.values())


def families(
    tasks: Sequence[PlannedTask], context: CellContext, data: Mapping[str, PreparedDataset]
) -> list[list[PlannedTask]]:
    """The tasks of a group by what they share batch by batch, in the order of their first ones."""
    found: dict[str, list[PlannedTask]] = {}
    for task in tasks:
        key = None
        if isinstance(task.probe, SteppedProbe) and len(tasks) > 1:
            told = Context(
                context.backbone, context.config, data[task.name], task.settings, context.seed, context.device, Path(), Silent(),
                Silent(), num_workers=0,
            )  # fmt: skip
            try:
                key = task.probe.family(told)
            except Exception as error:  # it will say so itself, in its own run
                if users_line(error) is not None:
                    raise
        found.setdefault(key or task.name, []).append(task)
    return list(found.values())


def run_family(
    family: Sequence[PlannedTask],
    context: CellContext,
    data: Mapping[str, PreparedDataset],
    ended: Callable[[PlannedTask, Cell | Exception], None],
) -> None:
    """Run the cells of ``family`` in lockstep (see ``benchmark.evaluation.cell.cell_steps``).

    Args:
        ended: told of each cell, or of what it broke with, as soon as it ends. What it raises ends the others, whose runs
            are then KILLED and go on where they are another time, as with an interruption.
    """
    table, joint = Table(), JointBar(reporter())
    tasks = {task.name: task for task in family}
    cells: dict[str, Any] = {
        name: cell_steps(context, task, data[name], joint.part(name), table) for name, task in tasks.items()
    }

    def told(name: str, result: Cell | Exception) -> None:
        joint.drop(name)
        ended(tasks[name], result)

    drain(in_lockstep(cells, told))
