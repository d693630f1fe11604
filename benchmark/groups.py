"""Task groups: tasks of one backbone and seed that are one unit of work, because they read the same
images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from backbones.cliptex.protocols import Silent
from benchmark.cell import CellContext
from benchmark.plan import PlannedTask
from common.errors import user_error_message
from common.files import content_key
from probes.base import GroupedProbe
from probes.datasets.base import PreparedDataset


def task_groups(
    tasks: Sequence[PlannedTask], data: Mapping[str, PreparedDataset]
) -> list[list[PlannedTask]]:
    """``tasks`` in groups, each a unit of work, in the order of their first ones: those that read
    photographs of the same names go together (three probes of VOC; depth and normals of NYU), a
    detector alone."""
    groups: dict[str, list[PlannedTask]] = {}
    for task in tasks:
        photographs = {
            split: [Path(s.image).stem for s in found]
            for split, found in data[task.name].samples.items()
        }
        alone = task.spec.kind == "detection"
        groups.setdefault(
            task.name if alone else content_key(photographs.get("val", photographs)), []
        ).append(task)
    return list(groups.values())


def training_groups(
    tasks: Sequence[PlannedTask], context: CellContext, data: Mapping[str, PreparedDataset]
) -> list[list[PlannedTask]]:
    """The tasks of a unit by what one pass can train, in the order of their first ones."""
    found: dict[str, list[PlannedTask]] = {}
    for task in tasks:
        key = None
        if isinstance(task.probe, GroupedProbe) and len(tasks) > 1:
            told = context.of_task(task, data[task.name], Path(), Silent(), Silent())
            try:
                key = task.probe.group_key(told)
            except Exception as error:  # it will say so itself, in its own run
                if user_error_message(error) is not None:
                    raise
        found.setdefault(key or task.name, []).append(task)
    return list(found.values())
