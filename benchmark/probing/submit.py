"""Probing through an executor, as runs and sweeps do it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from benchmark.execution.base import Executor, Priority
from benchmark.execution.progress import console
from benchmark.probing.data import split_into_units
from benchmark.probing.records import BackboneInfo, PlannedTask, ProbeRequest, without_specs
from benchmark.probing.unit import describe_backbone, preferred_precision, probe_unit
from probes.datasets.base import PreparedDataset
from reports.cell import Cell


def unit_name(backbone: str, seed: int, tasks: Sequence[PlannedTask]) -> str:
    """The name of the unit that probes ``tasks``."""
    return f"{backbone} · seed {seed} · {' + '.join(task.name for task in tasks)}"


async def ask_for_precision(
    tasks: Sequence[PlannedTask], executor: Executor
) -> Sequence[PlannedTask]:
    """Tasks with the precision that a worker prefers on its device, where the plan still has
    ``auto``, since this machine has no such device."""
    if not any(task.is_precision_open for task in tasks):
        return tasks
    precision = await executor.run(
        preferred_precision,
        executor.device,
        name="ask a worker whether it computes in bf16",
        kind="precision",
        priority=Priority.PREPARATION,
    )
    console.print(f"precision {precision} on the workers", style="dim")
    return [task.with_precision(precision) for task in tasks]


@dataclass
class Probing:
    """Tasks on their data, submitted as units of work.

    Attributes:
        experiment: in MLflow.
        suite: name of the suite.
        data: task → its dataset.
        data_root: as by ``--data-root``; its subfolders ``wds_NAME`` are webdatasets.
        force: run finished cells again.
    """

    executor: Executor
    experiment: str
    suite: str
    tasks: Sequence[PlannedTask]
    data: Mapping[str, PreparedDataset]
    data_root: Path | None = None
    force: bool = False

    @cached_property
    def units(self) -> list[list[PlannedTask]]:
        """The tasks of each unit of work: those that are scored on the same images."""
        return split_into_units(self.tasks, self.data)

    @cached_property
    def conditions(self) -> dict[str, dict[str, Any]]:
        """Task → its ``PlannedTask.conditions``."""
        return {task.name: task.conditions(self.data[task.name]) for task in self.tasks}

    async def describe(self, create_arguments: Mapping[str, Any]) -> BackboneInfo:
        """``describe_backbone`` in a worker, which may probe the backbone next. With an executor on
        other machines, where a job would wait in a queue, in this process.

        Args:
            create_arguments: keyword arguments of ``backbones.create``.
        """
        if self.executor.is_remote:
            return describe_backbone(create_arguments)
        name = f"load {create_arguments['name']}"
        return await self.executor.run(
            describe_backbone,
            create_arguments,
            name=name,
            kind="backbone",
            priority=Priority.LOADING,
        )

    async def cells(
        self,
        tasks: Sequence[PlannedTask],
        backbone: BackboneInfo,
        seed: int,
        parent_id: str,
        model_id: str,
        priority: int = Priority.DEFAULT,
    ) -> list[Cell]:
        """The cells of one unit of work: ``tasks`` on one backbone and seed.

        Args:
            tasks: one of ``units``, or those of its tasks that are not finished.
            parent_id: of the MLflow run that the cells' runs nest under.
            model_id: of the backbone's LoggedModel.
        """
        request = ProbeRequest(
            tasks=tuple(tasks),
            data={task.name: without_specs(self.data[task.name]) for task in tasks},
            data_root=self.data_root,
            backbone=backbone,
            model_id=model_id,
            seed=seed,
            suite=self.suite,
            experiment=self.experiment,
            parent_id=parent_id,
            device=self.executor.device,
            num_workers=self.executor.num_workers,
            force=self.force,
        )
        name = unit_name(backbone.name, seed, tasks)
        return await self.executor.run(
            probe_unit, request, name=name, kind="probe", priority=priority
        )
