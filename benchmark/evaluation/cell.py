"""One cell of the table – backbone × task × seed – run into a child run of MLflow, or found there already."""

from __future__ import annotations

import gzip
import json
import shutil
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from backbones import Backbone, UserError
from backbones.files import content_key, home, write_json
from backbones.locks import lock_file, locked
from benchmark.evaluation.device import device_kind, peak_mb, reset_peak
from benchmark.evaluation.plan import PlannedTask, cell_key
from benchmark.execution.interrupts import as_interrupt
from benchmark.execution.progress import reporter
from probes.base import Context, Probe, Progress, SteppedProbe, TaskResult
from probes.datasets.base import PreparedDataset
from probes.features import budget
from probes.runner.lockstep import Steps
from probes.runner.stream import Seat, Table
from reports.store import metric_name
from reports.tracking import Run, Tracker


@dataclass
class Cell:
    """What stands in the table for one backbone, task and seed.

    ``status`` is ``done``, ``cached`` (finished in an earlier run), ``failed`` or ``not applicable``.
    """

    backbone: str
    task: str
    seed: int
    status: str
    metrics: dict[str, float] = field(default_factory=dict)
    reason: str = ""
    seconds: float = 0.0
    run_id: str = ""
    notes: list[str] = field(default_factory=list)


def finished_cell(
    tracker: Tracker, backbone: Backbone, task: PlannedTask, data: PreparedDataset, seed: int
) -> Cell | None:
    """The same cell from an earlier run, with its metrics read back, or ``None``."""
    run = tracker.finished(cell=cell_key(backbone, task.protocol(data), seed))
    if run is None:
        return None
    stored = {metric_name(key): value for key, value in run.data.metrics.items()}
    metrics = {name: stored[name] for name in run.data.tags.get("metrics", "").split(",") if name in stored}
    return Cell(backbone.name, task.name, seed, "cached", metrics, run_id=run.info.run_id)


@dataclass(frozen=True)
class CellContext:
    """What the cells of one backbone and seed share.

    Attributes:
        tracker, parent: where their runs go.
        backbone: frozen, on ``device``; config: keyword arguments of ``backbones.create`` that make it again.
        num_workers: data loading processes; never changes a result.
    """

    tracker: Tracker
    parent: Run
    backbone: Backbone
    config: Mapping[str, Any]
    seed: int
    device: torch.device
    num_workers: int


def cell_steps(
    context: CellContext, task: PlannedTask, data: PreparedDataset, progress: Progress, table: Table | None = None
) -> Steps[Cell]:
    """Run one task on one backbone and write everything about it into a child run of the parent. The caller has the cell's lock.

    Its ``cost/seconds`` are those of its own steps, and an equal share of what it shares with others at ``table``; its
    ``cost/peak_memory_mb`` is that of all who go on beside it.

    Raises whatever the probe raises; the child run is then FAILED (or KILLED) with the reason, and the scratch folder stays, so
    that the same command goes on where it stopped.
    """
    tracker, backbone, seed, device = context.tracker, context.backbone, context.seed, context.device
    protocol = task.protocol(data)
    cell = cell_key(backbone, protocol, seed)
    tags = {
        "task": task.name,
        "dataset": task.spec.name,
        "kind": task.spec.kind,
        "probe": task.probe.name,
        "backbone": backbone.name,
        "weights.sha256": backbone.weights.sha256,
        "seed": str(seed),
        "suite": tracker.experiment,
        "device.kind": device_kind(device),
        "protocol": content_key(protocol),
        "cell": cell,
        "data.fingerprint": data.fingerprint,
        "data.partial": str(data.partial).lower(),
        "metrics": ",".join(task.probe.metrics),
        "directions": ",".join(f"{name}:{sign:+d}" for name, sign in task.probe.metrics.items()),
    }
    params = {"backbone": backbone.name, "seed": seed, **protocol["settings"]}
    with _work_dir(cell) as work_dir, tracker.run(task.name, tags=tags, params=params, parent=context.parent) as run:
        run.log_dataset(
            task.spec.name, data.fingerprint, "probing", source=str(data.root.resolve()),
            **{split: len(s) for split, s in data.samples.items()},
        )  # fmt: skip
        told = Context(
            backbone=backbone, backbone_config=context.config, data=data, settings=task.settings, seed=seed, device=device,
            work_dir=work_dir, log=run, progress=progress, num_workers=context.num_workers,
        )  # fmt: skip
        reset_peak(device)
        kept = budget.reserved
        seat = Seat(table=table)
        with as_interrupt():
            result = yield from seat.turns(_steps(task.probe, told, seat))
        seconds = seat.clock()
        missing = [name for name in task.probe.metrics if not np.isfinite(result.metrics.get(name, np.nan))]
        if missing:
            result.notes.append(f"no value for {', '.join(missing)} on this data: missing, not zero")
        result.notes += task.deviations(data)
        if data.skipped:
            result.notes.append(f"{len(data.skipped)} unreadable samples were skipped: " + _some(data.skipped))
        result.cost["disk_bytes"] = budget.reserved - kept
        _write(run, result, protocol, seconds, device)
        run.set_tags({"metrics": ",".join(n for n in result.metrics if np.isfinite(result.metrics[n]))})
        for log in sorted(work_dir.rglob("*.log")):
            run.log_file(log, "/".join(["log", *log.relative_to(work_dir).parts[:-2]]))
    return Cell(
        backbone.name, task.name, seed, "done", result.metrics, seconds=seconds, run_id=run.id, notes=result.notes
    )


def _steps(probe: Probe, context: Context, seat: Seat) -> Steps[TaskResult]:
    """A probe's steps; where it has none, a single one."""
    if isinstance(probe, SteppedProbe):
        return (yield from probe.steps(context, seat))
    return probe.run(context)


def _write(run: Run, result: TaskResult, protocol: dict[str, Any], seconds: float, device: torch.device) -> None:
    run.log_metrics(result.metrics)
    costs = {"seconds": seconds, "peak_memory_mb": peak_mb(device), **result.cost}
    run.log_metrics({f"cost/{name}": value for name, value in costs.items()})
    run.log_json(protocol, "protocol.json")
    run.log_json({k: (v if np.isfinite(v) else None) for k, v in result.metrics.items()}, "metrics.json")
    if result.config:
        run.log_text(result.config, "config.json" if result.config.lstrip().startswith("{") else "config.py")
    if result.notes:
        run.log_text("\n".join(result.notes) + "\n", "notes.txt")
        run.describe("\n".join(f"* {note}" for note in result.notes))
    with tempfile.TemporaryDirectory() as folder:
        if result.per_image:
            path = Path(folder) / "per_image.npz"
            np.savez_compressed(path, **result.per_image)  # type: ignore[arg-type]
            run.log_file(path)
        if result.detections is not None:
            path = Path(folder) / "detections.json.gz"
            with gzip.open(path, "wt", encoding="utf-8") as file:
                json.dump(result.detections, file)
            run.log_file(path)
        if result.panel is not None:
            run.log_file(result.panel, "pictures")
            if (gallery := result.panel.with_name("gallery.zip")).is_file():  # a report puts backbones side by side
                run.log_file(gallery, "pictures")


@contextmanager
def cell_locks(cells: Iterable[str]) -> Iterator[None]:
    """No other process works on any of these cells (or removes what they go on from) meanwhile; who comes second waits, and looks
    whether they are finished. In one order, so that no two processes wait for each other."""
    with ExitStack() as stack:
        for cell in sorted(cells):
            path = lock_file("cell", cell)
            stack.enter_context(
                locked(path, lambda: reporter().start("another process runs this cell: waiting for it", 1))
            )
        yield


@contextmanager
def _work_dir(cell: str) -> Iterator[Path]:
    """The cell's scratch folder, what it goes on from; it goes when the block succeeds."""
    folder = home() / "work" / cell
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"cannot write {folder}: {error.strerror}; set CLIPTEX_HOME to a folder you can write"
        ) from error
    write_json(folder / "cell.json", {"cell": cell, "started": time.strftime("%Y-%m-%dT%H:%M:%S")})
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


def _some(skipped: tuple[tuple[str, str], ...], most: int = 5) -> str:
    named = "; ".join(f"{path} ({reason})" for path, reason in skipped[:most])
    return named + (f"; and {len(skipped) - most} more" if len(skipped) > most else "")
