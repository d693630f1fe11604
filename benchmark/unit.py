"""The unit of work of probing: one backbone × task group × seed, in plain values, run by whichever
process."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from rich.traceback import Traceback

import backbones
import benchmark.catalog  # noqa: F401 – registers every dataset, probe and suite
from benchmark.cell import Cell, CellContext, cell_locks, finished_cell, run_cells
from benchmark.cost import choose_device, costs_of
from benchmark.data import DataChoice, prepare_data
from benchmark.execution.progress import console, reporter
from benchmark.groups import training_groups
from benchmark.plan import PlannedTask, cell_key, plan_tasks
from benchmark.results.table import number
from benchmark.suites.registry import find_suite
from common.errors import NonFiniteLoss, error_summary, user_error_message
from probes.datasets.specs.webdataset import register_folders
from reports.mlflow.run import Run, Tracker


@dataclass(frozen=True)
class ProbeUnit:
    """What a unit probes.

    Attributes:
        suite, tasks, overrides: which tasks, with which changed settings (``--set``).
        config: keyword arguments of ``backbones.create``.
        data: where the datasets are, and how much of them counts.
        experiment: in MLflow; parent: id of the run that the cells' runs nest under.
        force: run finished cells again, but those of this parent: its worker may have been lost
            after it had finished them.
    """

    suite: str
    tasks: tuple[str, ...]
    config: Mapping[str, Any]
    seed: int
    experiment: str
    parent: str
    overrides: Mapping[str, str] = field(default_factory=dict)
    data: DataChoice = field(default_factory=DataChoice)
    device: str = "auto"
    num_workers: int = 2
    force: bool = False


def probe_unit(unit: ProbeUnit) -> list[Cell]:
    """The unit's cells, in the order of its tasks. One that breaks is a failed cell with its
    reason; the others go on.

    Raises:
        what the user must mend (see ``user_error_message``): a full disk, a store that is away.
    """
    register_folders(unit.data.root)
    tasks = plan_tasks(find_suite(unit.suite), unit.tasks, unit.overrides)
    tracker = Tracker(unit.experiment)
    data = prepare_data(tasks, unit.data, unit.num_workers)
    device = choose_device(unit.device)
    if device.type == "cuda":
        torch.set_float32_matmul_precision(
            "high"
        )  # TF32: what heads, and backbones in fp32, multiply in
    backbone = backbones.create(**unit.config).to(device)
    context = CellContext(
        tracker,
        Run(tracker, unit.parent, ""),
        backbone,
        unit.config,
        unit.seed,
        device,
        unit.num_workers,
    )
    with cell_locks(
        cell_key(backbone, task.protocol(data[task.name]), unit.seed) for task in tasks
    ):
        parent = unit.parent if unit.force else ""
        known = (
            (task, finished_cell(tracker, backbone, task, data[task.name], unit.seed, parent))
            for task in tasks
        )
        cells = {task.name: cell for task, cell in known if cell is not None}
        left = [task for task in tasks if task.name not in cells]
        if left:
            spent = costs_of(backbone, [task.settings for task in left], device)
            context.parent.log_metrics({f"cost/{name}": value for name, value in spent.items()})
            context.parent.flush()
        for group in training_groups(left, context, data):
            reporter().prefix = (
                f"{backbone.name} · seed {unit.seed} · {' + '.join(task.name for task in group)} · "
            )
            run_cells(group, context, data, lambda task, cell: _ended(context, cells, task, cell))
            reporter().prefix = ""
    return [cells[task.name] for task in tasks]


def _ended(
    context: CellContext, cells: dict[str, Cell], task: PlannedTask, cell: Cell | Exception
) -> None:
    name, seed = context.backbone.name, context.seed
    if isinstance(cell, Exception):
        if user_error_message(cell) is not None:
            raise cell
        if not isinstance(cell, NonFiniteLoss):  # that one's reason says it all
            console.print(
                Traceback.from_exception(type(cell), cell, cell.__traceback__, max_frames=8)
            )
        cell = Cell(name, task.name, seed, "failed", reason=error_summary(cell))
    cells[task.name] = cell
    main = next(iter(task.probe.metrics))
    if cell.status == "done":
        value = number(cell.metrics.get(main))
        console.print(f"  {name} · seed {seed} · {task.name}: {main} {value}  {cell.seconds:.0f} s")
