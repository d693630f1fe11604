"""The units of work of probing: describe a backbone, and probe it on tasks that share
images."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

import backbones
import benchmark.suites.catalog  # noqa: F401 – registers every dataset, probe and suite
from benchmark.execution.device import choose_device
from benchmark.execution.progress import reporter
from benchmark.execution.unit import keep_last_model
from benchmark.probing.cell import (
    CellContext,
    cell_locks,
    cells_of_heads,
    finished_cells,
    missing_cells,
    run_cells,
)
from benchmark.probing.cost import backbone_costs
from benchmark.probing.records import BackboneInfo, PlannedTask, ProbeRequest
from cliptex_common.device import float32_products, on_device, prefers_bf16
from cliptex_common.errors import UserError
from cliptex_common.files import content_key
from cliptex_common.progress import Silent
from cliptex_common.settings import Precision
from probes.base import GroupedProbe
from probes.datasets.specs.webdataset import register_folders
from reports.cell import Cell, cost_metrics
from reports.mlflow.run import Run, Tracker


def preferred_precision(device: str) -> Precision:
    """What ``precision=auto`` means on the device of this process; a unit of work."""
    return "bf16" if prefers_bf16(choose_device(device)) else "fp32"


load_backbone = keep_last_model(backbones.create)  # the same process may probe it next


def describe_backbone(create_arguments: Mapping[str, Any]) -> BackboneInfo:
    """Build a backbone and describe it; a unit of work. Raises ``UserError`` as
    ``backbones.create``."""
    return BackboneInfo.of(load_backbone(**create_arguments), create_arguments)


def probe_unit(request: ProbeRequest) -> list[Cell]:
    """The unit's cells, in the order of its tasks; those that another process has finished
    meanwhile are read back.

    Raises:
        errors that the user can correct (``user_error_message``): a full disk, an unreachable
            store.
    """
    register_folders(request.data_root)
    tracker = Tracker(request.experiment)
    # with --force, only what this same unit finished before its worker died
    parent_id = request.parent_id if request.force else ""
    backbone, seed, cells = request.backbone, request.seed, dict[str, Cell]()
    for uses_head in (False, True):  # heads are trained before other tasks use them
        tasks = [task for task in request.tasks if task.uses_head == uses_head]
        conditions = {task.name: task.conditions(request.dataset(task)) for task in tasks}
        heads = cells_of_heads(tracker, backbone, tasks, conditions, seed, parent_id)
        keys = backbone.cell_keys(conditions, seed, heads)
        reasons = {
            task.name: f"{task.training_task.name}, whose head it uses, has no result"
            for task in tasks
            if task.name not in keys
        }
        cells |= missing_cells(backbone.name, seed, reasons)
        with cell_locks(keys.values()):
            cells |= finished_cells(tracker, keys, backbone.name, parent_id)
            pending = [task for task in tasks if task.name not in cells]
            if pending:
                finished = _run_pending(request, pending, tracker, heads)
                cells |= {cell.task: cell for cell in finished}
    return [cells[task.name] for task in request.tasks]


def _run_pending(
    request: ProbeRequest,
    tasks: Sequence[PlannedTask],
    tracker: Tracker,
    heads: Mapping[str, Cell],
) -> list[Cell]:
    device = choose_device(request.device)
    backbone = load_backbone(**request.backbone.create_arguments).to(device)
    if content_key(backbone.identity()) != content_key(request.backbone.identity):
        raise UserError(
            f"the weights of {backbone.name} have changed since the run began; run the command"
            " again"
        )
    parent = Run(tracker, request.parent_id, name=request.parent_id)
    context = CellContext(request, tracker, parent, backbone, device, heads)
    cells: list[Cell] = []
    with computing_on(device):
        parent.log_new_metrics(cost_metrics(backbone_costs(backbone, device)))
        parent.flush()
        for joint_tasks in trained_together(tasks, context):
            names = " + ".join(task.name for task in joint_tasks)
            reporter().prefix = f"{backbone.name} · seed {request.seed} · {names} · "
            cells += run_cells(joint_tasks, context)
            reporter().prefix = ""
    return cells


def trained_together(tasks: Sequence[PlannedTask], context: CellContext) -> list[list[PlannedTask]]:
    """Split tasks into lists that one training loop can train on the same batches, ordered by the
    first task of each list."""
    lists: dict[str, list[PlannedTask]] = {}
    for task in tasks:
        key = None
        if isinstance(task.probe, GroupedProbe) and not task.uses_head:
            # the key depends on settings and data: no folder, log or progress
            key = task.probe.group_key(context.of_task(task, Path(), Silent(), Silent()))
        lists.setdefault(key or task.name, []).append(task)
    return list(lists.values())


@contextmanager
def computing_on(device: torch.device) -> Iterator[None]:
    """Make ``device`` the current one while the block runs, and compute float32 products exactly,
    without TF32."""
    with on_device(device), float32_products(tf32=False):
        yield
