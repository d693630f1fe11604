"""One cell of the table – backbone × task × seed – run into a child run of MLflow, or found there
already."""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path, PurePath
from typing import Any

import numpy as np
import torch

from backbones import Backbone, UserError
from benchmark.cost import device_kind, peak_mb, reset_peak
from benchmark.execution.interrupts import as_interrupt
from benchmark.execution.progress import reporter
from benchmark.plan import PlannedTask, cell_key
from common.files import content_key, home, read_json_object, write_json
from common.locks import lock_path, locked
from probes.base import Context, GroupedProbe, Probe, Progress, RunLog, TaskResult
from probes.datasets.base import PreparedDataset
from probes.features import budget
from probes.predictor import FILE as HEAD
from probes.predictor import write_head
from reports.detections import FILE as DETECTIONS
from reports.detections import to_columns
from reports.metrics import TAG, declare
from reports.mlflow.client import metric_key
from reports.mlflow.models import logged_model
from reports.mlflow.run import Run, Tracker

STARTED = "cell.json"  # in a cell's scratch folder: the run that it was begun in


@dataclass
class Cell:
    """What stands in the table for one backbone, task and seed.

    ``status`` is ``done``, ``cached`` (finished in an earlier run), ``failed`` or
    ``not applicable``.
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
    tracker: Tracker,
    backbone: Backbone,
    task: PlannedTask,
    data: PreparedDataset,
    seed: int,
    parent: str = "",
) -> Cell | None:
    """The same cell from an earlier run (of this ``parent``), with its metrics read back, or
    ``None``."""
    under = {"mlflow.parentRunId": parent} if parent else {}
    run = tracker.finished(cell=cell_key(backbone, task.protocol(data), seed), **under)
    if run is None:
        return None
    stored, names = run.data.metrics, run.data.tags.get("metrics", "").split(",")
    metrics = {name: stored[metric_key(name)] for name in names if metric_key(name) in stored}
    return Cell(backbone.name, task.name, seed, "cached", metrics, run_id=run.info.run_id)


@dataclass(frozen=True)
class CellContext:
    """What the cells of one backbone and seed share.

    Attributes:
        tracker, parent: where their runs go.
        backbone: frozen, on ``device``; config: keyword arguments of ``backbones.create`` that make
            it again.
        num_workers: data loading processes; never changes a result.
    """

    tracker: Tracker
    parent: Run
    backbone: Backbone
    config: Mapping[str, Any]
    seed: int
    device: torch.device
    num_workers: int

    @cached_property
    def model(self) -> str:
        """The backbone's LoggedModel."""
        return log_backbone(self.tracker, self.backbone)

    def of_task(
        self,
        task: PlannedTask,
        data: PreparedDataset,
        work_dir: Path,
        log: RunLog,
        progress: Progress,
    ) -> Context:
        """What the task's probe is told."""
        return Context(
            self.backbone,
            self.config,
            task.of(data, self.seed),
            task.settings,
            self.seed,
            self.device,
            work_dir,
            log,
            progress,
            self.num_workers,
        )


def run_cells(
    tasks: Sequence[PlannedTask],
    context: CellContext,
    data: Mapping[str, PreparedDataset],
    ended: Callable[[PlannedTask, Cell | Exception], None],
) -> None:
    """Run tasks that one pass can train (or a single one) on one backbone and write everything
    about each into a child run of the parent. The caller has the cells' locks.

    The ``cost/seconds`` and ``cost/disk_bytes`` of a cell are an equal share of the group's; its
    ``cost/peak_memory_mb`` is that of the group.

    Args:
        ended: told of each cell, or of what it broke with: its child run is then FAILED with the
            reason. What it raises ends the others, whose runs are KILLED, as all are after an
            interruption. The scratch folder of a cell that is not finished stays, so that the same
            command goes on where it stopped.
    """
    runs: dict[str, ExitStack] = {}
    began, kept = time.perf_counter(), budget.written_bytes
    try:
        opened: list[tuple[PlannedTask, Context, Run]] = []
        for task in tasks:
            runs[task.name] = ExitStack()
            opened.append(
                (task, *runs[task.name].enter_context(_cell_run(context, task, data[task.name])))
            )
        reset_peak(context.device)
        results = _run_probes([(task.probe, told) for task, told, _ in opened])
        seconds, disk = (
            (time.perf_counter() - began) / len(tasks),
            (budget.written_bytes - kept) / len(tasks),
        )
        for (task, told, run), result in zip(opened, results, strict=True):
            outcome: Cell | Exception
            try:
                with runs.pop(task.name):
                    if isinstance(result, Exception):
                        raise result
                    cost = told.cost.metrics() | {
                        "seconds": seconds,
                        "disk_bytes": disk,
                        "peak_memory_mb": peak_mb(context.device),
                    }
                    outcome = _finish(task, told, run, result, cost, context.model)
            except Exception as error:
                outcome = error
            ended(task, outcome)
    except BaseException:
        for left in runs.values():
            with suppress(BaseException):  # the first error is the one to show
                left.__exit__(KeyboardInterrupt, KeyboardInterrupt(), None)
        raise


def _run_probes(probes: Sequence[tuple[Probe, Context]]) -> Sequence[TaskResult | Exception]:
    (probe, told), *others = probes
    try:
        with as_interrupt():
            if isinstance(probe, GroupedProbe):
                return probe.run_group(probes)
            assert not others
            return [probe.run(told)]
    except MemoryError:
        raise
    except Exception as error:
        return [error] * len(probes)


@contextmanager
def _cell_run(
    context: CellContext, task: PlannedTask, data: PreparedDataset
) -> Iterator[tuple[Context, Run]]:
    """The child run of a cell, and what its probe is told."""
    tracker, backbone = context.tracker, context.backbone
    protocol = task.protocol(data)
    cell = cell_key(backbone, protocol, context.seed)
    tags = {
        "task": task.name,
        "dataset": task.spec.name,
        "kind": task.spec.kind,
        "probe": task.probe.name,
        "backbone": backbone.name,
        "weights.sha256": backbone.weights.sha256,
        "seed": str(context.seed),
        "suite": tracker.experiment,
        "device.kind": device_kind(context.device),
        "protocol": content_key(protocol),
        "cell": cell,
        "data.fingerprint": data.fingerprint,
        "data.partial": str(data.partial).lower(),
        "preset": getattr(task.settings, "protocol", "own"),
        "differs": "; ".join(task.deviations(data)),
        "metrics": ",".join(task.probe.metrics),
        TAG: declare(task.probe.metrics),
    }
    params = {"backbone": backbone.name, "seed": context.seed, **protocol["settings"]}
    if task.train_share < 1:
        params["train_share"] = task.train_share
    with _work_dir(cell) as work_dir:
        # one that was stopped, or broke, goes on in its own run: its curves are in one piece
        begun = tracker.known(read_json_object(work_dir / STARTED).get("run"))
        resume = (
            begun.info.run_id if begun is not None and begun.info.status != "FINISHED" else None
        )
        with tracker.run(
            task.name,
            tags=tags,
            params=params,
            parent=context.parent,
            resume=resume,
            monitored=True,
        ) as run:
            write_json(work_dir / STARTED, {"cell": cell, "run": run.id})
            told = context.of_task(task, data, work_dir, run, reporter())
            log_probed(run, told.data)
            run.log_models(inputs=[context.model])
            yield told, run


def log_backbone(tracker: Tracker, backbone: Backbone, trained_by: str = "") -> str:
    """The id of a backbone's LoggedModel, made where these weights have none in this experiment."""
    weights = backbone.weights
    params = {
        "architecture": backbone.architecture,
        "parameters": sum(one.numel() for one in backbone.parameters()),
        "image_size": "x".join(map(str, backbone.data.size)),
        "embed_dim": backbone.embed_dim,
        "channels": backbone.channels,
        "strides": backbone.strides,
        "text": backbone.has_text,
    }
    tags = {
        "backbone": backbone.name,
        "weights.source": weights.source,
        "weights.licence": weights.licence,
    }
    return logged_model(tracker, backbone.name, weights.sha256, params, tags, trained_by)


def log_probed(run: Run, data: PreparedDataset) -> None:
    """The dataset of a task, with the sizes of its splits, as an input of a run."""
    sizes = {split: len(samples) for split, samples in data.samples.items()}
    run.log_dataset(
        data.spec.name, data.fingerprint, "probing", source=str(data.root.resolve()), **sizes
    )


def _finish(
    task: PlannedTask,
    told: Context,
    run: Run,
    result: TaskResult,
    cost: Mapping[str, float],
    model: str,
) -> Cell:
    """Write what came out into the run."""
    result.metrics = {
        name: result.metrics[name] for name in task.probe.metrics if name in result.metrics
    }
    missing = [
        name for name in task.probe.metrics if not np.isfinite(result.metrics.get(name, np.nan))
    ]
    if missing:
        result.notes.append(f"no value for {', '.join(missing)} on this data: missing, not zero")
    result.notes += task.deviations(told.data)
    result.notes += told.data.notes
    if told.data.skipped:
        result.notes.append(
            f"{len(told.data.skipped)} unreadable samples were skipped: " + _some(told.data.skipped)
        )
    protocol = task.protocol(told.data)
    # the Models page has a column for each "dataset": a task under one protocol is what can be
    # compared
    scored = {
        "model_id": model,
        "dataset_name": task.name,
        "dataset_digest": content_key(protocol)[:36],
    }
    run.log_metrics(result.metrics, scored=scored)
    if task.spec.kind in ("segmentation", "detection"):
        result.per_image["classes"] = np.array(told.data.classes)  # for tables of single classes
    run.log_metrics({f"cost/{name}": value for name, value in cost.items()})
    config = task.probe.config(told)
    run.log_text(config, "config.json" if config.lstrip().startswith("{") else "config.py")
    _write(run, result, protocol)
    run.set_tags({"metrics": ",".join(n for n in result.metrics if np.isfinite(result.metrics[n]))})
    for log in sorted(told.work_dir.rglob("*.log")):
        run.log_file(log, "/".join(["log", *log.relative_to(told.work_dir).parts[:-2]]))
    return Cell(
        told.backbone.name,
        task.name,
        told.seed,
        "done",
        result.metrics,
        seconds=cost["seconds"],
        run_id=run.id,
        notes=result.notes,
    )


def _write(run: Run, result: TaskResult, protocol: dict[str, Any]) -> None:
    run.log_json(protocol, "protocol.json")
    run.log_json(
        {k: (v if np.isfinite(v) else None) for k, v in result.metrics.items()}, "metrics.json"
    )
    if result.notes:
        run.log_text("\n".join(result.notes) + "\n", "notes.txt")
        run.describe("\n".join(f"* {note}" for note in result.notes))
    with tempfile.TemporaryDirectory() as folder:
        if result.per_image:
            path = Path(folder) / "per_image.npz"
            np.savez_compressed(path, **result.per_image)  # type: ignore[arg-type]
            run.log_file(path)
        if result.detections is not None:
            path = Path(folder) / DETECTIONS
            np.savez_compressed(path, **to_columns(result.detections))  # type: ignore[arg-type]
            run.log_file(path)
        if result.head is not None:
            path = Path(folder) / PurePath(HEAD).name
            write_head(result.head, path)
            run.log_file(path, str(PurePath(HEAD).parent))
        if result.preview is not None:
            run.log_file(result.preview, "pictures")
            if (
                gallery := result.preview.with_name("gallery.zip")
            ).is_file():  # a report puts backbones side by side
                run.log_file(gallery, "pictures")


@contextmanager
def cell_locks(cells: Iterable[str]) -> Iterator[None]:
    """No other process works on any of these cells (or removes what they go on from) meanwhile; who
    comes second waits, and looks whether they are finished. In one order, so that no two processes
    wait for each other."""
    with ExitStack() as stack:
        for cell in sorted(cells):
            path = lock_path("cell", cell)
            stack.enter_context(
                locked(
                    path,
                    lambda: reporter().start("another process runs this cell: waiting for it", 1),
                )
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
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


def _some(skipped: tuple[tuple[str, str], ...], most: int = 5) -> str:
    named = "; ".join(f"{path} ({reason})" for path, reason in skipped[:most])
    return named + (f"; and {len(skipped) - most} more" if len(skipped) > most else "")
