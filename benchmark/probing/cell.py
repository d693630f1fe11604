"""One cell – backbone × task × seed – as a child run in MLflow: run, or read back if finished."""

from __future__ import annotations

import shutil
import tempfile
import time
import traceback
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePath

import numpy as np
import torch

from backbones import Backbone
from benchmark.execution import WorkerLost
from benchmark.execution.interrupts import as_interrupt
from benchmark.execution.progress import console, reporter
from benchmark.probing.cost import peak_mb, reset_peak
from benchmark.records import BackboneInfo, Cell, PlannedTask, ProbeRequest
from benchmark.results.table import format_number
from cliptex_common.device import device_name, is_out_of_memory
from cliptex_common.errors import NonFiniteLoss, OutOfMemory, error_summary, user_error_message
from cliptex_common.files import content_key, home, read_json_object, write_json
from cliptex_common.locks import lock_path, locked
from cliptex_common.out_of_memory import out_of_memory
from probes.base import Context, GroupedProbe, Probe, Progress, RunLog, TaskResult
from probes.datasets.base import PreparedDataset
from probes.datasets.share import with_share
from probes.dense.tasks import DENSE_TASKS
from probes.features import budget
from probes.image_level.parts import part_features
from probes.layers import at_layers
from probes.predictor import FILE as HEAD
from probes.predictor import write_head
from reports.detections import FILE as DETECTIONS
from reports.detections import to_columns
from reports.metrics import DECLARED_TAG, declare
from reports.mlflow.client import metric_key
from reports.mlflow.models import logged_model
from reports.mlflow.run import NOTE_TAG, Run, Tracker
from reports.parts.axes import PARTS

STARTED = "cell.json"  # in a cell's scratch folder: the MLflow run that it was started in


@dataclass(frozen=True)
class CellContext:
    """What the cells of a unit share: the unit, the parent of their MLflow runs, and the frozen
    backbone on its device."""

    unit: ProbeRequest
    tracker: Tracker
    parent: Run
    backbone: Backbone
    device: torch.device

    def of_task(
        self, task: PlannedTask, work_dir: Path, log: RunLog, progress: Progress
    ) -> Context:
        """The context of the task's probe."""
        context = Context(
            backbone=self.backbone,
            backbone_config=self.unit.backbone.create_arguments,
            data=with_share(self.unit.dataset(task), task.train_share, self.unit.seed),
            settings=task.settings,
            seed=self.unit.seed,
            device=self.device,
            work_dir=work_dir,
            log=log,
            progress=progress,
            num_workers=self.unit.num_workers,
        )
        return at_layers(context, task.encoded_layers)


def finished_cell(
    tracker: Tracker, backbone: str, task: str, seed: int, key: str, parent: str = ""
) -> Cell | None:
    """The finished cell with identity ``key``, or None.

    Args:
        parent: accept only a run under this parent run; '' accepts any.
    """
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


def run_cells(tasks: Sequence[PlannedTask], context: CellContext) -> list[Cell]:
    """Run tasks in one training loop, on the same batches (or a single task), each into a child run
    of the parent. The caller holds the cells' locks.

    ``cost/seconds`` and ``cost/disk_bytes`` of a cell are an equal share of what the loop took;
    ``cost/peak_memory_mb`` is the loop's. A task that breaks is a failed cell with its reason.

    Raises:
        errors that the user can correct (``user_error_message``), such as a full disk. They end the
            other tasks too; scratch folders of unfinished cells stay, so that the same command
            resumes them.
    """
    cells: list[Cell] = []
    started, bytes_before = time.perf_counter(), budget.reserved_bytes
    with ExitStack() as stack:
        opened = [stack.enter_context(_child_run(context, task)) for task in tasks]
        reset_peak(context.device)
        contexts = [probe_context for probe_context, _ in opened]
        probes = [task.probe for task in tasks]
        results = _run_probes(list(zip(probes, contexts, strict=True)))
        shared_cost = {
            "seconds": (time.perf_counter() - started) / len(tasks),
            "disk_bytes": (budget.reserved_bytes - bytes_before) / len(tasks),
            "peak_memory_mb": peak_mb(context.device),
        }
        for task, (probe_context, run), result in zip(tasks, opened, results, strict=True):
            cost = {**probe_context.cost.metrics(), **shared_cost}
            try:
                if isinstance(result, Exception):
                    raise result
                cell = _log_result(task, probe_context, run, result, cost, context.unit.model)
                value = format_number(cell.metrics.get(task.main_metric))
                console.print(
                    f"  {cell.backbone} · seed {cell.seed} · {task.name}: {task.main_metric}"
                    f" {value}  {cell.seconds:.0f} s"
                )
            except Exception as error:
                reason = failure_reason(error)
                (cell,) = failed_cells(context.backbone.name, context.unit.seed, [task], reason)
                run.fail(reason)
            cells.append(cell)
    for cell in cells:
        if cell.status == "done":
            shutil.rmtree(_work_dir(context.unit.cell_keys[cell.task]), ignore_errors=True)
    return cells


def _run_probes(probes: Sequence[tuple[Probe, Context]]) -> Sequence[TaskResult | Exception]:
    probe, context = probes[0]
    try:
        with as_interrupt():
            if isinstance(probe, GroupedProbe):
                return probe.run_group(probes)
            return [probe.run(context)]
    except Exception as error:
        if is_out_of_memory(error):
            advice = "smaller settings may fit, see `run --dry-run`"
            return [out_of_memory(error, advice)] * len(probes)
        return [error] * len(probes)


def failure_reason(error: Exception) -> str:
    """One line for a failed cell.

    Re-raises an error that the user can correct, which ends the command. For a bug, also prints the
    traceback.
    """
    if user_error_message(error) is not None:
        raise error
    if not isinstance(error, NonFiniteLoss | OutOfMemory | WorkerLost):
        console.print("".join(traceback.format_exception(error)), markup=False)
    return error_summary(error)


def failed_cells(backbone: str, seed: int, tasks: Sequence[PlannedTask], reason: str) -> list[Cell]:
    """The cells of tasks that have no result."""
    return [Cell(backbone, task.name, seed, "failed", reason=reason) for task in tasks]


@contextmanager
def _child_run(context: CellContext, task: PlannedTask) -> Iterator[tuple[Context, Run]]:
    """The context of a cell's probe and its MLflow run."""
    unit, data = context.unit, context.unit.dataset(task)
    backbone, key, conditions = unit.backbone, unit.cell_keys[task.name], task.conditions(data)
    tags = {
        "task": task.name,
        "dataset": task.spec.name,
        "kind": task.spec.kind,
        "probe": task.probe.name,
        "backbone": backbone.name,
        "weights.sha256": backbone.weights.sha256,
        "seed": str(unit.seed),
        "suite": unit.suite,
        "device.kind": device_name(context.device),
        "threads": str(torch.get_num_threads()),
        "protocol": content_key(conditions),
        "cell": key,
        "data.fingerprint": data.fingerprint,
        "data.partial": str(data.partial).lower(),
        "preset": getattr(task.settings, "protocol", "own"),
        "differs": task.deviations(data),
        "metrics": ",".join(task.probe.metrics),
        DECLARED_TAG: declare(task.probe.metrics),
    }
    params = {"backbone": backbone.name, "seed": unit.seed, **conditions["settings"]}
    if task.train_share < 1:
        params["train_share"] = task.train_share
    work_dir = _work_dir(key)
    work_dir.mkdir(parents=True, exist_ok=True)
    # an interrupted or failed cell continues in its own run, so that its curves are complete
    started = context.tracker.find_run(read_json_object(work_dir / STARTED).get("run"))
    resume = None
    if started is not None and started.info.status != "FINISHED":
        resume = started.info.run_id
        reporter().mark_resumed()
    with context.tracker.run(
        task.name,
        tags=tags,
        params=params,
        parent=context.parent,
        resume=resume,
        monitored=True,
    ) as run:
        write_json(work_dir / STARTED, {"cell": key, "run": run.id})
        log_dataset(run, data)
        run.log_models(inputs=[unit.model])
        run.log_json(conditions, "protocol.json")
        yield context.of_task(task, work_dir, run, reporter()), run


def _work_dir(cell: str) -> Path:
    """A cell's scratch folder, from which it resumes; removed when the cell is finished."""
    return home() / "work" / cell


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
    """Log a result into the cell's run: the metrics that the probe declares, files, notes.
    Returns the cell."""
    data = context.data
    metrics = {name: result.metrics[name] for name in task.probe.metrics if name in result.metrics}
    finite = [name for name, value in metrics.items() if np.isfinite(value)]
    notes = [
        *result.notes,
        *context.cost.notes,
        *filter(None, [task.deviations(data)]),
        *data.notes,
    ]
    if data.skipped:
        path, reason = data.skipped[0]
        count = len(data.skipped)
        notes.append(f"{count} unreadable samples were skipped, the first is {path} ({reason})")
    conditions = task.conditions(data)
    # the Models page has one column for each "dataset": one task under the same conditions
    scored = {
        "model_id": model,
        "dataset_name": task.name,
        "dataset_digest": content_key(conditions)[:36],
    }
    run.log_metrics(metrics, scored=scored)
    run.log_metrics({f"cost/{name}": value for name, value in cost.items()})
    description = {NOTE_TAG: "\n".join(f"* {note}" for note in notes)} if notes else {}
    run.set_tags({"metrics": ",".join(finite), **description})
    run.log_json(
        {name: metrics[name] if name in finite else None for name in metrics}, "metrics.json"
    )
    config = task.probe.config(context)
    run.log_text(config, "config.json" if config.lstrip().startswith("{") else "config.py")
    dense_task = DENSE_TASKS.get(task.spec.kind)
    if task.spec.kind == "detection" or (dense_task and dense_task.has_classes):
        # class names, for per-class tables; the one array here with an entry per class instead of
        # per image (a probe that scores more than the dataset's gives its own)
        result.per_image.setdefault("classes", np.array(data.classes))
    _log_files(run, result, part_features(context) if task.varies("size") else {})
    # MMEngine's log is TIME/TIME.log or SUB/TIME/TIME.log: log it in the folder log or log/SUB
    for log in sorted(context.work_dir.rglob("*.log")):
        run.log_file(log, "/".join(["log", *log.relative_to(context.work_dir).parts[:-2]]))
    return Cell(
        context.backbone.name,
        task.name,
        context.seed,
        "done",
        metrics,
        seconds=cost["seconds"],
        run_id=run.id,
        notes=notes,
    )


def _log_files(run: Run, result: TaskResult, parts: Mapping[str, np.ndarray]) -> None:
    """Log per-image scores, parts of images, detections, the head and pictures."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        arrays = {"per_image.npz": result.per_image, PARTS: parts}
        if result.detections is not None:
            arrays[DETECTIONS] = to_columns(result.detections)
        for file, columns in arrays.items():
            if columns:
                np.savez_compressed(folder / file, **columns)  # type: ignore[arg-type]
                run.log_file(folder / file)
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
