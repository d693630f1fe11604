"""Probing through an executor, as a run and a sweep do it: tasks on their data, given out as units
of work."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from benchmark.cell import Cell
from benchmark.data import DataChoice, prepare_data
from benchmark.groups import task_groups
from benchmark.plan import AXES, PlannedTask
from benchmark.suites.registry import Stages
from benchmark.unit import ProbeUnit, probe_unit
from common.settings import field_names
from probes.datasets.base import PreparedDataset


@dataclass
class Probing:
    """The tasks of a run or a sweep.

    Attributes:
        stages: suite, MLflow experiment and executor; overrides: ``--set`` of the tasks.
        choice: where the datasets are, and how much of them counts.
        force: run finished cells again.
        priority: of its units, see ``Executor.submit``.
    """

    stages: Stages
    tasks: Sequence[PlannedTask]
    overrides: Mapping[str, str] = field(default_factory=dict)
    choice: DataChoice = field(default_factory=DataChoice)
    force: bool = False
    priority: int = 0

    @cached_property
    def data(self) -> dict[str, PreparedDataset]:
        """Task name → its dataset. Raises ``UserError`` for one that is missing, incomplete or
        broken."""
        return prepare_data(self.tasks, self.choice, self.stages.executor.num_workers)

    def groups(self, tasks: Sequence[PlannedTask]) -> list[list[PlannedTask]]:
        """``tasks`` in groups, each a unit of work."""
        return task_groups(tasks, self.data)

    async def cells(
        self, group: Sequence[PlannedTask], config: Mapping[str, Any], seed: int, parent: str
    ) -> list[Cell]:
        """The cells of a group on one backbone and seed, from a unit of work.

        Args:
            config: keyword arguments of ``backbones.create``.
            parent: id of the MLflow run that the cells' runs nest under.
        """
        stages, executor = self.stages, self.stages.executor
        # variants say theirs in their names
        known = {key for task in group for key in field_names(task.probe.settings_type)} - AXES
        overrides = {key: value for key, value in self.overrides.items() if key in known}
        unit = ProbeUnit(
            stages.suite,
            tuple(task.name for task in group),
            config,
            seed,
            stages.experiment,
            parent,
            overrides,
            self.choice,
            executor.device,
            executor.num_workers,
            self.force,
        )
        name = f"{config['name']} · seed {seed} · {' + '.join(unit.tasks)}"
        return await executor.run("probe", probe_unit, unit, name=name, priority=self.priority)
