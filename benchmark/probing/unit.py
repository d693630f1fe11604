"""The units of work of probing: describe a backbone, and probe it on a group of tasks."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

import backbones
import benchmark.catalog  # noqa: F401 – registers every dataset, probe and suite
from backbones.cliptex.protocols import Silent
from benchmark.execution.device import choose_device
from benchmark.execution.progress import reporter
from benchmark.probing.cell import CellContext, cell_locks, finished_cell, run_cells
from benchmark.probing.cost import backbone_costs
from benchmark.records import BackboneInfo, Cell, PlannedTask, ProbeUnit
from common.errors import UserError
from common.files import content_key
from probes.base import GroupedProbe
from probes.datasets.specs.webdataset import register_folders
from reports.mlflow.run import Run, Tracker


def describe_backbone(config: Mapping[str, Any]) -> BackboneInfo:
    """Build a backbone and describe it; a unit of work. The process keeps the backbone in memory in
    case it also probes it. Raises ``UserError`` as ``backbones.create`` does."""
    return BackboneInfo.of(_load_backbone(**config), config)


def probe_unit(unit: ProbeUnit) -> list[Cell]:
    """The unit's cells, in the order of its tasks; those that another process has finished
    meanwhile are read back.

    Raises:
        errors that the user can correct (``user_error_message``): a full disk, an unreachable
            store.
    """
    register_folders(unit.data_root)
    tracker = Tracker(unit.experiment)
    parent = unit.parent if unit.force else ""
    cells: dict[str, Cell] = {}
    with cell_locks(unit.cell_keys.values()):
        for name, key in unit.cell_keys.items():
            cell = finished_cell(tracker, unit.backbone.name, name, unit.seed, key, parent)
            if cell is not None:
                cells[name] = cell
        pending = [task for task in unit.tasks if task.name not in cells]
        if pending:
            cells |= {cell.task: cell for cell in _run_pending(unit, pending, tracker)}
    return [cells[task.name] for task in unit.tasks]


def _run_pending(unit: ProbeUnit, tasks: Sequence[PlannedTask], tracker: Tracker) -> list[Cell]:
    device = choose_device(unit.device)
    backbone = _load_backbone(**unit.backbone.config).to(device)
    if content_key(backbone.identity()) != content_key(unit.backbone.identity):
        raise UserError(
            f"the weights of {backbone.name} have changed since the run began; run the command"
            " again"
        )
    parent = Run(tracker, unit.parent, name=unit.parent)
    context = CellContext(unit, tracker, parent, backbone, device)
    cells: list[Cell] = []
    with computing_on(device):
        costs = backbone_costs(backbone, device).items()
        parent.log_new_metrics({f"cost/{name}": value for name, value in costs})
        parent.flush()
        for group in one_pass_groups(tasks, context):
            names = " + ".join(task.name for task in group)
            reporter().prefix = f"{backbone.name} · seed {unit.seed} · {names} · "
            cells += run_cells(group, context)
            reporter().prefix = ""
    return cells


def one_pass_groups(tasks: Sequence[PlannedTask], context: CellContext) -> list[list[PlannedTask]]:
    """Tasks that one pass can train together, in the order of their first ones."""
    groups: dict[str, list[PlannedTask]] = {}
    for task in tasks:
        key = None
        if isinstance(task.probe, GroupedProbe):
            key = task.probe.group_key(context.of_task(task, Path(), Silent(), Silent()))
        groups.setdefault(key or task.name, []).append(task)
    return list(groups.values())


@contextmanager
def computing_on(device: torch.device) -> Iterator[None]:
    """On CUDA, make ``device`` the current one and multiply float32 matrices in TF32, as heads and
    backbones in fp32 do, while the block runs."""
    if device.type != "cuda":
        yield
        return
    precision = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    try:
        with torch.cuda.device(device):
            yield
    finally:
        torch.set_float32_matmul_precision(precision)


# keeps the last backbone that this process built
_load_backbone = functools.lru_cache(maxsize=1)(backbones.create)
# a worker calls the attribute ``forget`` before a function of another kind, to free the memory
forget_backbone = _load_backbone.cache_clear
describe_backbone.forget = probe_unit.forget = forget_backbone  # type: ignore[attr-defined]
