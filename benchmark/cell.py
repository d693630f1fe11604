"""One cell – backbone × task × seed – as a child run in MLflow: run, or read back if finished."""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any

import numpy as np
import torch
from rich.traceback import Traceback

from backbones import Backbone
from benchmark.cost import device_kind, peak_mb, reset_peak
from benchmark.execution.interrupts import as_interrupt
from benchmark.execution.progress import console, reporter
from benchmark.records import BackboneInfo, Cell, PlannedTask
from benchmark.results.table import number
from common.errors import NonFiniteLoss, error_summary, user_error_message
from common.files import content_key, home, read_json_object, write_json
from common.locks import lock_path, locked
from probes.base import Context, GroupedProbe, Probe, Progress, RunLog, TaskResult
from probes.datasets.base import PreparedDataset
from probes.datasets.share import with_share
from probes.features import budget
from probes.predictor import FILE as HEAD
from probes.predictor import write_head
from reports.detections import FILE as DETECTIONS
from reports.detections import to_columns
from reports.metrics import TAG, declare
from reports.mlflow.client import metric_key
from reports.mlflow.models import logged_model
from reports.mlflow.run import Run, Tracker

STARTED = "cell.json"  # in a cell's scratch folder: the MLflow run that it was started in
MAX_SKIPPED_SHOWN = 5


@dataclass(frozen=True)
class CellContext:
    """What the cells of one backbone and seed share.

    Attributes:
        suite: its name.
        parent: the run that theirs nest under.
        backbone: frozen, on ``device``.
        info: the backbone's record.
        config: keyword arguments of ``backbones.create`` that build the backbone.
        model: id of the backbone's LoggedModel.
        cell_keys: task → identity of its cell.
    """

    tracker: Tracker
    suite: str
    parent: Run
    backbone: Backbone
    info: BackboneInfo
    config: Mapping[str, Any]
    model: str
    cell_keys: Mapping[str, str]
    seed: int
    device: torch.device
    num_workers: int

    def of_task(
        self,
        task: PlannedTask,
        data: PreparedDataset,
        work_dir: Path,
        log: RunLog,
        progress: Progress,
    ) -> Context:
        """The context of the task's probe."""
        return Context(
            backbone=self.backbone,
            backbone_config=self.config,
            data=with_share(data, task.train_share, self.seed),
            settings=task.settings,
            seed=self.seed,
            device=self.device,
            work_dir=work_dir,
            log=log,
            progress=progress,
            num_workers=self.num_workers,
        )


def finished_cell(
    tracker: Tracker, backbone: str, task: str, seed: int, key: str, parent: str = ""
) -> Cell | None:
    """The cell called ``key`` from an earlier run (one under ``parent``), or None."""
    tags = {"cell": key, **({"mlflow.parentRunId": parent} if parent else {})}
    run = tracker.finished(**tags)
    if run is None:
        return None
    metrics = {
        name: run.data.metrics[metric_key(name)]
        for name in run.data.tags.get("metrics", "").split(",")
        if metric_key(name) in run.data.metrics
    }
    return Cell(backbone, task, seed, "cached", metrics, run_id=run.info.run_id)


def run_cells(
    tasks: Sequence[PlannedTask], context: CellContext, data: Mapping[str, PreparedDataset]
) -> list[Cell]:
    """Run tasks that one pass can train (or a single one), each into a child run of the parent.
    The caller holds the cells' locks.

    ``cost/seconds`` and ``cost/disk_bytes`` of a cell are an equal share of the group's;
    ``cost/peak_memory_mb`` is the group's. A task that breaks is a failed cell with its reason.

    Raises:
        errors that the user can correct (``user_error_message``), such as a full disk. They end the
            other tasks too, whose runs are KILLED like those of an interruption; scratch folders
            of unfinished cells stay, so that the same command resumes them.
    """
    cells: list[Cell] = []
    open_runs: dict[str, ExitStack] = {}
    started, bytes_before = time.perf_counter(), budget.reserved_bytes
    try:
        opened: list[tuple[PlannedTask, Context, Run]] = []
        for task in tasks:
            open_runs[task.name] = ExitStack()
            child = _child_run(context, task, data[task.name])
            opened.append((task, *open_runs[task.name].enter_context(child)))
        reset_peak(context.device)
        results = _run_probes([(task.probe, probe_context) for task, probe_context, _ in opened])
        shared_cost = {
            "seconds": (time.perf_counter() - started) / len(tasks),
            "disk_bytes": (budget.reserved_bytes - bytes_before) / len(tasks),
        }
        for (task, probe_context, run), result in zip(opened, results, strict=True):
            try:
                with open_runs.pop(task.name):
                    if isinstance(result, Exception):
                        raise result
                    cost = {
                        **probe_context.cost.metrics(),
                        **shared_cost,
                        "peak_memory_mb": peak_mb(context.device),
                    }
                    cell = _log_result(task, probe_context, run, result, cost, context.model)
                value = number(cell.metrics.get(task.main_metric))
                console.print(
                    f"  {cell.backbone} · seed {cell.seed} · {task.name}: {task.main_metric}"
                    f" {value}  {cell.seconds:.0f} s"
                )
            except Exception as error:
                cell = _fail_cell(context, task, error)
            cells.append(cell)
    except BaseException:
        for stack in open_runs.values():
            with suppress(BaseException):  # the first error is the one to show
                stack.__exit__(KeyboardInterrupt, KeyboardInterrupt(), None)
        raise
    return cells


def _run_probes(probes: Sequence[tuple[Probe, Context]]) -> Sequence[TaskResult | Exception]:
    probe, context = probes[0]
    try:
        with as_interrupt():
            if isinstance(probe, GroupedProbe):
                return probe.run_group(probes)
            return [probe.run(context)]
    except MemoryError:  # the user can correct it: it ends the run, not only these cells
        raise
    except Exception as error:
        return [error] * len(probes)


def _fail_cell(context: CellContext, task: PlannedTask, error: Exception) -> Cell:
    """The failed cell of a task; prints a bug's traceback. Raises what the user can correct."""
    if user_error_message(error) is not None:
        raise error
    if not isinstance(error, NonFiniteLoss):  # its message is complete
        console.print(
            Traceback.from_exception(type(error), error, error.__traceback__, max_frames=8)
        )
    return Cell(context.info.name, task.name, context.seed, "failed", reason=error_summary(error))


@contextmanager
def _child_run(
    context: CellContext, task: PlannedTask, data: PreparedDataset
) -> Iterator[tuple[Context, Run]]:
    """The MLflow run of a cell and the context of its probe."""
    info, key = context.info, context.cell_keys[task.name]
    protocol = task.protocol(data)
    tags = {
        "task": task.name,
        "dataset": task.spec.name,
        "kind": task.spec.kind,
        "probe": task.probe.name,
        "backbone": info.name,
        "weights.sha256": info.weights.sha256,
        "seed": str(context.seed),
        "suite": context.suite,
        "device.kind": device_kind(context.device),
        "protocol": content_key(protocol),
        "cell": key,
        "data.fingerprint": data.fingerprint,
        "data.partial": str(data.partial).lower(),
        "preset": getattr(task.settings, "protocol", "own"),
        "differs": "; ".join(task.deviations(data)),
        "metrics": ",".join(task.probe.metrics),
        TAG: declare(task.probe.metrics),
    }
    params = {"backbone": info.name, "seed": context.seed, **protocol["settings"]}
    if task.train_share < 1:
        params["train_share"] = task.train_share
    with _work_dir(key) as work_dir:
        # an interrupted or failed cell continues in its own run, so that its curves are complete
        started = context.tracker.find_run(read_json_object(work_dir / STARTED).get("run"))
        resume = None
        if started is not None and started.info.status != "FINISHED":
            resume = started.info.run_id
        with context.tracker.run(
            task.name,
            tags=tags,
            params=params,
            parent=context.parent,
            resume=resume,
            monitored=True,
        ) as run:
            write_json(work_dir / STARTED, {"cell": key, "run": run.id})
            probe_context = context.of_task(task, data, work_dir, run, reporter())
            log_dataset(run, probe_context.data)
            run.log_models(inputs=[context.model])
            yield probe_context, run


def log_backbone(tracker: Tracker, backbone: BackboneInfo, trained_by: str = "") -> str:
    """The id of the backbone's LoggedModel, which is created if the experiment has none of these
    weights. ``trained_by`` is the run that trained them."""
    weights = backbone.weights
    tags = {
        "backbone": backbone.name,
        "weights.source": weights.source,
        "weights.licence": weights.licence,
    }
    return logged_model(tracker, backbone.name, weights.sha256, backbone.params, tags, trained_by)


def log_dataset(run: Run, data: PreparedDataset) -> None:
    """Log a dataset, with the sizes of its splits, as an input of a run."""
    sizes = {split: len(samples) for split, samples in data.samples.items()}
    run.log_dataset(
        data.spec.name, data.fingerprint, "probing", source=str(data.root.resolve()), **sizes
    )


def _log_result(
    task: PlannedTask,
    context: Context,
    run: Run,
    result: TaskResult,
    cost: Mapping[str, float],
    model: str,
) -> Cell:
    """Log a result, as far as the probe declares its metrics, into its run; returns its cell."""
    data = context.data
    result.metrics = {
        name: result.metrics[name] for name in task.probe.metrics if name in result.metrics
    }
    finite = [name for name, value in result.metrics.items() if np.isfinite(value)]
    if missing := [name for name in task.probe.metrics if name not in finite]:
        result.notes.append(f"no value for {', '.join(missing)} on this data: missing, not zero")
    result.notes += [*task.deviations(data), *data.notes]
    if data.skipped:
        listing = [f"{path} ({reason})" for path, reason in data.skipped[:MAX_SKIPPED_SHOWN]]
        if len(data.skipped) > MAX_SKIPPED_SHOWN:
            listing.append(f"and {len(data.skipped) - MAX_SKIPPED_SHOWN} more")
        result.notes.append(
            f"{len(data.skipped)} unreadable samples were skipped: {'; '.join(listing)}"
        )
    protocol = task.protocol(data)
    # the Models page has one column for each "dataset": one task under one protocol
    scored = {
        "model_id": model,
        "dataset_name": task.name,
        "dataset_digest": content_key(protocol)[:36],
    }
    run.log_metrics(result.metrics, scored=scored)
    run.log_metrics({f"cost/{name}": value for name, value in cost.items()})
    config = task.probe.config(context)
    run.log_text(config, "config.json" if config.lstrip().startswith("{") else "config.py")
    if task.spec.kind in ("segmentation", "detection"):
        # for tables of single classes; the only array whose first axis is not the images
        result.per_image["classes"] = np.array(data.classes)
    _log_artifacts(run, result, protocol)
    run.set_tags({"metrics": ",".join(finite)})
    # MMEngine writes TIME/TIME.log: leave out both
    for log in sorted(context.work_dir.rglob("*.log")):
        run.log_file(log, "/".join(["log", *log.relative_to(context.work_dir).parts[:-2]]))
    return Cell(
        context.backbone.name,
        task.name,
        context.seed,
        "done",
        result.metrics,
        seconds=cost["seconds"],
        run_id=run.id,
        notes=result.notes,
    )


def _log_artifacts(run: Run, result: TaskResult, protocol: Mapping[str, Any]) -> None:
    run.log_json(protocol, "protocol.json")
    metrics = {name: v if np.isfinite(v) else None for name, v in result.metrics.items()}
    run.log_json(metrics, "metrics.json")
    if result.notes:
        run.log_text("\n".join(result.notes) + "\n", "notes.txt")
        run.describe("\n".join(f"* {note}" for note in result.notes))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if result.per_image:
            np.savez_compressed(folder / "per_image.npz", **result.per_image)  # type: ignore[arg-type]
            run.log_file(folder / "per_image.npz")
        if result.detections is not None:
            np.savez_compressed(folder / DETECTIONS, **to_columns(result.detections))  # type: ignore[arg-type]
            run.log_file(folder / DETECTIONS)
        if result.head is not None:
            path = PurePath(HEAD)
            write_head(result.head, folder / path.name)
            run.log_file(folder / path.name, str(path.parent))
    if result.preview is not None:
        run.log_file(result.preview, "pictures")
        gallery = result.preview.with_name("gallery.zip")
        if gallery.is_file():  # the report shows backbones side by side
            run.log_file(gallery, "pictures")


@contextmanager
def cell_locks(keys: Iterable[str]) -> Iterator[None]:
    """Exclude other processes from these cells while the block runs. A second process waits, and
    then looks whether they are finished. Locks are taken in one order, which excludes deadlocks."""
    message = "another process runs this cell: waiting for it"
    with ExitStack() as stack:
        for key in sorted(keys):
            lock = locked(lock_path("cell", key), lambda: reporter().start(message, 1))
            stack.enter_context(lock)
        yield


@contextmanager
def _work_dir(cell: str) -> Iterator[Path]:
    """The cell's scratch folder, from which it resumes; removed when the block succeeds."""
    folder = home() / "work" / cell
    folder.mkdir(parents=True, exist_ok=True)
    yield folder
    shutil.rmtree(folder, ignore_errors=True)
