"""The units of work of probing: describe a backbone, and probe it on a group of tasks."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

import backbones
import benchmark.catalog  # noqa: F401 – registers every dataset, probe and suite
from backbones import Backbone
from backbones.cliptex.protocols import Silent
from benchmark.cell import CellContext, cell_locks, finished_cell, run_cells
from benchmark.cost import backbone_costs, choose_device
from benchmark.execution.progress import reporter
from benchmark.records import BackboneInfo, Cell, DatasetRecord, PlannedTask
from common.errors import UserError, user_error_message
from common.files import content_key
from probes.base import GroupedProbe
from probes.datasets.base import PreparedDataset
from probes.datasets.specs.webdataset import register_folders
from reports.mlflow.client import metric_key
from reports.mlflow.run import Run, Tracker


@dataclass(frozen=True)
class ProbeUnit:
    """What a unit probes: all that the driver has looked up, in plain values.

    Attributes:
        tasks: those that share images (``group_tasks``).
        data: task → its dataset.
        cell_keys: task → identity of its cell.
        data_root: its ``wds_NAME`` folders are datasets.
        backbone: the backbone's record.
        config: keyword arguments of ``backbones.create``.
        model: id of the backbone's LoggedModel.
        suite: name of the suite.
        experiment: in MLflow.
        parent: id of the run that the cells' runs nest under.
        force: run finished cells again, except those finished under this same parent (by a worker
            that died before its unit ended).
    """

    tasks: tuple[PlannedTask, ...]
    data: Mapping[str, DatasetRecord]
    cell_keys: Mapping[str, str]
    data_root: Path | None
    backbone: BackboneInfo
    config: Mapping[str, Any]
    model: str
    seed: int
    suite: str
    experiment: str
    parent: str
    device: str
    num_workers: int
    force: bool


def describe_backbone(config: Mapping[str, Any]) -> BackboneInfo:
    """Build a backbone and describe it; a unit of work. The process keeps the backbone in memory in
    case it also probes it. Raises ``UserError`` as ``backbones.create`` does."""
    return BackboneInfo.of(_load_backbone(config))


def probe_unit(unit: ProbeUnit) -> list[Cell]:
    """The unit's cells, in the order of its tasks; those that another process has finished
    meanwhile are read back.

    Raises:
        errors that the user can correct (``user_error_message``): a full disk, an unreachable
            store.
    """
    register_folders(unit.data_root)
    tracker = Tracker(unit.experiment)
    cells: dict[str, Cell] = {}
    with cell_locks(unit.cell_keys.values()):
        for task in unit.tasks:
            key = unit.cell_keys[task.name]
            parent = unit.parent if unit.force else ""
            cell = finished_cell(tracker, unit.backbone.name, task.name, unit.seed, key, parent)
            if cell is not None:
                cells[task.name] = cell
        pending = [task for task in unit.tasks if task.name not in cells]
        if pending:
            cells |= {cell.task: cell for cell in _run_pending(unit, pending, tracker)}
    return [cells[task.name] for task in unit.tasks]


def _run_pending(unit: ProbeUnit, tasks: Sequence[PlannedTask], tracker: Tracker) -> list[Cell]:
    device = choose_device(unit.device)
    backbone = _load_backbone(unit.config).to(device)
    if content_key(backbone.identity()) != content_key(unit.backbone.identity):
        raise UserError(
            f"the weights of {backbone.name} have changed since the run began; run the command"
            " again"
        )
    context = CellContext(
        tracker=tracker,
        suite=unit.suite,
        parent=Run(tracker, unit.parent, name=unit.parent),
        backbone=backbone,
        info=unit.backbone,
        config=unit.config,
        model=unit.model,
        cell_keys=unit.cell_keys,
        seed=unit.seed,
        device=device,
        num_workers=unit.num_workers,
    )
    data = {task.name: unit.data[task.name].dataset(task.spec) for task in tasks}
    cells: list[Cell] = []
    with computing_on(device):
        _log_costs(context.parent, backbone_costs(backbone, [t.settings for t in tasks], device))
        for group in one_pass_groups(tasks, context, data):
            names = " + ".join(task.name for task in group)
            reporter().prefix = f"{backbone.name} · seed {unit.seed} · {names} · "
            cells += run_cells(group, context, data)
            reporter().prefix = ""
    return cells


def one_pass_groups(
    tasks: Sequence[PlannedTask], context: CellContext, data: Mapping[str, PreparedDataset]
) -> list[list[PlannedTask]]:
    """Tasks that one pass can train together, in the order of their first ones."""
    groups: dict[str, list[PlannedTask]] = {}
    for task in tasks:
        key = None
        if isinstance(task.probe, GroupedProbe) and len(tasks) > 1:
            probe_context = context.of_task(task, data[task.name], Path(), Silent(), Silent())
            try:
                key = task.probe.group_key(probe_context)
            except Exception as error:  # it is raised again, and recorded, in the task's own run
                if user_error_message(error) is not None:
                    raise
        groups.setdefault(key or task.name, []).append(task)
    return list(groups.values())


def _log_costs(run: Run, costs: Mapping[str, float]) -> None:
    """Log a backbone's costs that its run does not have from another unit or an earlier command."""
    stored = run.tracker.find_run(run.id)
    logged = stored.data.metrics if stored is not None else {}
    run.log_metrics(
        {
            f"cost/{name}": value
            for name, value in costs.items()
            if metric_key(f"cost/{name}") not in logged
        }
    )
    run.flush()


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


def _load_backbone(config: Mapping[str, Any]) -> Backbone:
    weights = config.get("weights")
    status = Path(weights).stat() if weights and Path(weights).is_file() else None
    state = (status.st_size, status.st_mtime_ns) if status else None
    return _cached_backbone(tuple(sorted(config.items())), state)


@functools.lru_cache(maxsize=1)
def _cached_backbone(config: tuple[tuple[str, Any], ...], state: object) -> Backbone:
    """The last backbone that this process built; ``state`` changes with its weights file."""
    return backbones.create(**dict(config))


# a worker calls the attribute ``forget`` before a function of another kind, to free the memory
forget_backbone = _cached_backbone.cache_clear
describe_backbone.forget = probe_unit.forget = forget_backbone  # type: ignore[attr-defined]
