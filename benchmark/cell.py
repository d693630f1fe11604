"""The unit of work of probing (``probe_unit``): tasks that share images, on one backbone and seed.

Each cell is a run in MLflow, computed, or read back if it is finished. Beside its numbers stands
what it cost, and beside those of its parent what the backbone costs (``backbone_costs``).
"""

from __future__ import annotations

import json
import resource
import shutil
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from pathlib import Path, PurePath
from typing import Any

import numpy as np
import torch

import benchmark.catalog  # noqa: F401 – registers every dataset, probe and suite
from backbones.backbone import Backbone, in_memory_format
from benchmark.executor import choose_device
from benchmark.finished import (
    RUN_FILE,
    cells_of_heads,
    finished_cells,
    missing_cells,
    report_failure,
    work_dir,
)
from benchmark.progress import console, reporter
from benchmark.tasks import Job, PlannedTask
from benchmark.unit import as_interrupt
from cliptex_common.device import (
    count_flops,
    device_name,
    float32_products,
    is_accelerator,
    is_out_of_memory,
    on_device,
    out_of_memory,
    peak_memory,
    prefers_bf16,
    reset_peak_memory,
    synchronize,
)
from cliptex_common.errors import UserError
from cliptex_common.files import (
    canonical_json,
    content_key,
    home,
    lock_path,
    locked,
    read_json_object,
    sha256_file,
    write_json,
)
from cliptex_common.process import versions
from cliptex_common.progress import Silent
from cliptex_common.settings import Precision
from probes.base import Context, GroupedProbe, Head, Probe, TaskResult, with_units
from probes.datasets.webdataset import register_folders
from probes.dense.tasks import DENSE_TASKS
from probes.upsamplers.names import HUB_SOURCES
from reports import records
from reports.records import TAGS, Cell, cost_metrics, to_columns
from reports.tracking import Run, Tracker

TIMED_SECONDS = 0.3  # of passes, after a first one that does not count
MAX_PASSES = 10


def reset_peak(device: torch.device) -> None:
    """Start measuring peak memory anew (on Linux and accelerators that count it; elsewhere the peak
    is that of the process since its start)."""
    reset_peak_memory(device)
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def peak_mb(device: torch.device) -> float:
    """Peak memory in MB since ``reset_peak``: of an accelerator that counts it, otherwise resident
    memory of this process without its loading processes."""
    peak = peak_memory(device)
    if peak is None:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return peak / 1e6


def backbone_costs(backbone: Backbone, device: torch.device) -> Mapping[str, float]:
    """``parameters``, and ``flops_per_image``, ``images_per_second``, ``memory_mb`` and
    ``latency_ms`` (of an image alone) of feature maps at the backbone's own size in fp32.

    FLOPs are as in ``cliptex_common.device``. Memory is that of ``peak_mb``.
    """
    identity = {
        "backbone": {
            "name": backbone.architecture,
            "config": dict(backbone.model_config),
            "layers": backbone.data.layers,
            "size": backbone.data.size,
        },
        "device": device_name(device),
        "threads": torch.get_num_threads(),
        "torch": versions("torch"),
    }
    path = home() / "efficiency" / f"{content_key(identity)}.json"
    if cached := read_json_object(path):
        return cached["measured"]
    try:
        costs = _measure(backbone, device)
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        return {}  # the task may need less: it computes in smaller batches
    write_json(path, {"measured": costs, **identity})
    return costs


@torch.inference_mode()
def _measure(backbone: Backbone, device: torch.device) -> dict[str, float]:
    """Costs of 16 images at once on an accelerator, else of one; latency is that of one."""
    batch = 16 if is_accelerator(device) else 1
    images = torch.zeros(batch, 3, *backbone.data.size, device=device)
    images = in_memory_format(images, backbone)

    def compute() -> None:
        backbone(images)
        synchronize(device)

    flops = count_flops(compute)
    reset_peak(device)
    seconds = _fastest(compute)
    memory = peak_mb(device)
    if batch > 1:
        images = images[:1]
    return {
        "parameters": float(sum(parameter.numel() for parameter in backbone.parameters())),
        "flops_per_image": flops / batch,
        "images_per_second": batch / seconds,
        "latency_ms": 1000 * (_fastest(compute) if batch > 1 else seconds),
        "memory_mb": memory,
    }


def _fastest(compute: Callable[[], None]) -> float:
    """Seconds of the fastest pass, because other processes may compute meanwhile."""
    seconds: list[float] = []
    while sum(seconds) < TIMED_SECONDS and len(seconds) < MAX_PASSES:
        started = time.perf_counter()
        compute()
        seconds.append(time.perf_counter() - started)
    return min(seconds)


def run_cells(
    contexts: Sequence[tuple[PlannedTask, Context]], job: Job, tracker: Tracker
) -> list[Cell]:
    """Run tasks in one training loop, on the same batches (or a single task), each into a child run
    of the parent. The caller holds the cells' locks.

    Args:
        contexts: task and what its probe needs, besides its run's log.

    ``cost/seconds`` of a cell is an equal share of what the loop took; ``cost/peak_memory_mb`` is
    the loop's. A task that breaks is a failed cell with its reason.

    Raises:
        errors that the user can correct (``user_error_message``), such as a full disk. They end the
            other tasks too; scratch folders of unfinished cells stay, so that the same command
            resumes them.
    """
    cells: list[Cell] = []
    started = time.perf_counter()
    with ExitStack() as stack:
        opened = []
        for task, context in contexts:
            cell, run = stack.enter_context(_open_run(task, context, job, tracker))
            opened.append((task, replace(context, log=run), cell, run))
        device = contexts[0][1].device
        reset_peak(device)
        results = _run_probes([(task.probe, context) for task, context, _, _ in opened])
        shared_cost = {
            "seconds": (time.perf_counter() - started) / len(opened),
            "peak_memory_mb": peak_mb(device),
        }
        for (task, context, cell, run), result in zip(opened, results, strict=True):
            try:
                if isinstance(result, Exception):
                    raise result
                result = with_units(result, context.data)
                costs = {**context.cost.metrics(), **shared_cost}
                cell = _with_result(cell, task, context, result, costs)
                if result.head is not None:
                    head = _log_head(run, result.head, job.conditions[task.name], cell.seed)
                    cell = cell.model_copy(update={"head": head})  # not one that it has used
                _log_metrics(cell, run, job.model_id)
                ends = (f"{end}{cell.main}" for end in (records.FLOOR, records.CEILING))
                bounds = {end: result.metrics[end] for end in ends if end in result.metrics}
                bounds |= {f"{end}{cell.main}": value for end, value in result.bounds.items()}
                run.log_metrics({records.BOUND + name: value for name, value in bounds.items()})
                _log_files(task, context, run, result)
                if task.name == job.tasks[0].name:  # once, since the unit shares its images
                    _log_feature_pictures(context, run)
            except Exception as error:
                reason = report_failure(error)
                failed = {"status": "failed", "reason": reason, "metrics": {}, "costs": {}}
                cell = cell.model_copy(update=failed)
                run.fail(reason)
            else:
                value = cell.metrics.get(cell.main, np.nan)
                console.print(
                    f"  {cell.backbone} · seed {cell.seed} · {cell.task}: {cell.main}"
                    f" {value:.4g}  {cell.seconds:.0f} s"
                )
            cells.append(cell)
    for cell in cells:
        if cell.status == "done":
            shutil.rmtree(work_dir(cell.key), ignore_errors=True)
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
            settings = context.settings
            advice = getattr(settings, "memory_advice", "lower batch_size or size")
            error = out_of_memory(error, advice)
        return [error] * len(probes)


@contextmanager
def _open_run(
    task: PlannedTask, context: Context, job: Job, tracker: Tracker
) -> Iterator[tuple[Cell, Run]]:
    """Start or resume the MLflow run of a cell: the cell without result, and the run."""
    data, conditions = job.data[task.name], job.conditions[task.name]
    backbone = job.backbone
    cell = Cell(
        name=task.name,
        backbone=backbone.name,
        weights=backbone.weights.sha256,
        network=backbone.network,
        task=task.name,
        dataset=task.spec.name,
        kind=task.spec.kind,
        probe=task.probe.name,
        seed=job.seed,
        suite=job.suite,
        device=device_name(context.device),
        threads=str(torch.get_num_threads()),
        protocol=content_key(conditions),
        key=context.work_dir.name,  # see ``work_dir``
        head=context.head.sha256 if context.head else "",
        fingerprint=data.fingerprint,
        partial=data.partial,
        image_set=data.spec.image_set,
        preset=getattr(task.settings, "protocol", "own"),
        differs=task.deviations(data),
        changed=task.shortened(data),
        declared=dict(task.probe.metrics),
    )
    # that of the parent, for MLflow's UI
    label = {"label": backbone.column} if backbone.column != backbone.name else {}
    params = {"backbone": backbone.name, "seed": job.seed, **conditions["settings"]}
    if task.train_share < 1:
        params["train_share"] = task.train_share
    work_dir = context.work_dir
    work_dir.mkdir(parents=True, exist_ok=True)
    # an interrupted or failed cell continues in its own run, so that its curves are complete
    started = tracker.find_run(read_json_object(work_dir / RUN_FILE).get("run", ""))
    resume = started.run_id if started is not None and not started.is_finished else None
    with tracker.run(
        task.name,
        tags=cell.to_tags() | label,
        params=params,
        parent=Run(tracker, job.parent_id, name=job.parent_id),
        resume=resume,
        monitored=True,
    ) as run:
        write_json(work_dir / RUN_FILE, {"cell": cell.key, "run": run.id})
        run.log_dataset(
            data.spec.name,
            data.fingerprint,
            "probing",
            source=str(data.root.resolve()),
            **{split: len(samples) for split, samples in data.samples.items()},
        )
        run.log_models(inputs=[job.model_id])
        run.log_json(conditions, records.PROTOCOL)
        yield cell.model_copy(update={"run_id": run.id, "backbone": backbone.column}), run


def _with_result(
    cell: Cell, task: PlannedTask, context: Context, result: TaskResult, costs: Mapping[str, float]
) -> Cell:
    """The cell with the metrics that the probe declares, and its notes."""
    data, device = context.data, context.device
    metrics = {name: result.metrics[name] for name in cell.declared if name in result.metrics}
    if not np.isfinite(metrics.get(cell.main, np.nan)):
        raise RuntimeError(f"the probe returned no finite {cell.main}")
    notes = [*result.notes, *context.cost.notes, *filter(None, [cell.differs]), *data.notes]
    name = getattr(task.settings, "upsampler", "")
    if name in HUB_SOURCES:
        notes.append(f"upsampler={name}: {HUB_SOURCES[name].credit}")
    emulates_bf16 = is_accelerator(device) and not prefers_bf16(device)
    if emulates_bf16 and getattr(task.settings, "precision", "") == "bf16":
        notes.append(f"{device_name(device)} emulates bf16; precision=fp32 is faster there")
    if data.skipped:
        path, reason = data.skipped[0]
        count = len(data.skipped)
        notes.append(f"unreadable samples were skipped: {count}, the first is {path} ({reason})")
    return cell.model_copy(update={"metrics": metrics, "costs": dict(costs), "notes": tuple(notes)})


def _log_metrics(cell: Cell, run: Run, model_id: str) -> None:
    """Log the numbers and notes of a cell; ``model_id`` is that of the backbone's LoggedModel."""
    # MLflow's Models page has a column for each "dataset": here, for each task and its conditions
    about = {"model_id": model_id, "dataset_name": cell.task, "dataset_digest": cell.protocol}
    run.log_metrics(cell.metrics, about=about)
    run.log_metrics(cost_metrics(cell.costs))
    if cell.notes:
        run.describe("\n".join(f"* {note}" for note in cell.notes))
    finite = {name: v if np.isfinite(v) else None for name, v in cell.metrics.items()}
    run.log_json(finite, records.METRICS_FILE)


def _log_head(run: Run, head: Head, conditions: Mapping[str, Any], seed: int) -> str:
    """Log a head with all that it depends on; the sha256 of its file, which becomes a tag, too."""
    conditions = json.loads(canonical_json(conditions))
    metadata = {**head.metadata, "seed": seed, "conditions": conditions}
    head = replace(head, metadata=metadata)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, PurePath(records.HEAD).name)
        head.write(path)
        digest = sha256_file(path)
        run.log_file(path, str(PurePath(records.HEAD).parent))
    run.set_tags({TAGS["head"]: digest})
    return digest


def _log_files(task: PlannedTask, context: Context, run: Run, result: TaskResult) -> None:
    """Log config, per-image scores, features of parts of images, detections, pictures and logs."""
    config = result.config or task.probe.config(context)
    run.log_text(config, "config.json" if config.lstrip().startswith("{") else "config.py")
    per_image = dict(result.per_image)
    dense_task = DENSE_TASKS.get(task.spec.kind)
    if task.spec.kind == "detection" or (dense_task and dense_task.has_classes):
        # names for per-class tables, unless the probe has classes of its own: the one array that
        # has an entry for each class, not for each image
        per_image.setdefault("classes", np.array(context.data.classes))
    arrays: dict[str, Mapping[str, np.ndarray]] = {records.PER_IMAGE: per_image}
    if task.varies("size"):
        from probes.pictures import part_features  # imports MMEngine: only where a task is computed

        arrays[records.PARTS] = part_features(context)
    if result.detections is not None:
        arrays[records.DETECTIONS] = to_columns(result.detections)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for file, columns in arrays.items():
            if columns:
                np.savez_compressed(folder / file, **columns)  # type: ignore[arg-type]
                run.log_file(folder / file)
    if result.preview is not None:
        gallery = result.preview.with_name(PurePath(records.GALLERY).name)
        for picture in filter(Path.is_file, (result.preview, gallery)):  # not all probes draw both
            run.log_file(picture, records.PICTURES)
    # MMEngine's log is TIME/TIME.log or SUB/TIME/TIME.log: log it in the folder log or log/SUB
    for log in sorted(context.work_dir.rglob("*.log")):
        run.log_file(log, "/".join(["log", *log.relative_to(context.work_dir).parts[:-2]]))


def _log_feature_pictures(context: Context, run: Run) -> None:
    from probes.pictures import task_feature_pictures  # likewise

    try:
        arrays = task_feature_pictures(context)
    except UserError as error:  # the numbers are logged
        console.print(f"  no picture of features: {error}")
        return
    path = PurePath(records.FEATURES)
    with tempfile.TemporaryDirectory() as name:
        file = Path(name, path.name)
        np.savez_compressed(file, **arrays)  # type: ignore[arg-type]
        run.log_file(file, str(path.parent))


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


def preferred_precision(device: str) -> Precision:
    """What ``precision=auto`` means on the device of this process; a unit of work."""
    return "bf16" if prefers_bf16(choose_device(device)) else "fp32"


def probe_unit(job: Job) -> list[Cell]:
    """The unit's cells, in the order of its tasks; those that another process has finished
    meanwhile are read back.

    Raises:
        errors that the user can correct (``user_error_message``): a full disk, an unreachable
            store.
    """
    if job.data_root:
        register_folders(job.data_root)
    tracker = Tracker(job.experiment)
    # with --force, only what this same unit finished before its worker died
    parent_id = job.parent_id if job.force else ""
    backbone, seed, cells = job.backbone, job.seed, dict[str, Cell]()
    for uses_head in (False, True):  # heads are trained before other tasks use them
        tasks = [task for task in job.tasks if task.uses_head == uses_head]
        heads = cells_of_heads(tracker, backbone, tasks, job.conditions, seed, parent_id)
        keys = backbone.cell_keys(tasks, job.conditions, seed, heads)
        reasons = {
            task.name: f"{task.scored_with.name}, whose head it uses, has no result"
            for task in tasks
            if task.scored_with and task.name not in keys
        }
        cells |= missing_cells(backbone.column, seed, reasons)
        with cell_locks(keys.values()):
            cells |= finished_cells(tracker, keys, backbone, parent_id)
            pending = [(task, keys[task.name]) for task in tasks if task.name not in cells]
            if pending:
                finished = _run_pending(job, pending, tracker, heads)
                cells |= {cell.task: cell for cell in finished}
    return [cells[task.name] for task in job.tasks]


def _run_pending(
    job: Job,
    pending: Sequence[tuple[PlannedTask, str]],
    tracker: Tracker,
    heads: Mapping[str, Cell],
) -> list[Cell]:
    """The cells of tasks, with their keys, that are not finished; ``heads``: task → the cell whose
    head it uses."""
    device = choose_device(job.device)
    backbone: Any = job.backbone.deferred(device)
    # to log to; its name, which only messages of errors need, is not known here
    parent = Run(tracker, job.parent_id, name=job.parent_id)
    cells: list[Cell] = []
    with computing_on(device):
        # costs of the backbone, which only a worker has in memory, are the parent run's
        parent.log_new_metrics(cost_metrics(backbone_costs(backbone, device)))
        parent.flush()
        contexts = [
            (
                task,
                task.context(
                    job.data[task.name],
                    job.seed,
                    backbone=backbone if _is_ours(task.probe) else backbone.built,
                    backbone_config=job.backbone.create_arguments,
                    device=device,
                    work_dir=work_dir(key),
                    log=Silent(),
                    progress=reporter(),
                    num_workers=job.num_workers,
                    head=_load_head(heads[task.name], tracker) if task.uses_head else None,
                ),
            )
            for task, key in pending
        ]
        for joint in trained_together(contexts):
            names = " + ".join(task.name for task, _ in joint)
            # of every step that the probe reports
            reporter().prefix = f"{job.backbone.column} · seed {job.seed} · {names} · "
            cells += run_cells(joint, job, tracker)
            reporter().prefix = ""
    return cells


def _is_ours(probe: Probe) -> bool:
    """Whether its code is of this package; that of others may need a backbone that is a module."""
    modules = type(probe).__module__, getattr(probe, "module", "probes.")
    return all(module.startswith("probes.") for module in modules)


def _load_head(cell: Cell, tracker: Tracker) -> Head:
    """The head of a cell. Raises ``UserError`` if it cannot be read or is another one."""
    from probes.predictor import load_head  # likewise

    head = load_head(cell.run_id, tracker.uri)
    if head.sha256 != cell.head:  # a part of the number's identity
        raise UserError(
            f"the head of {cell.label} ({cell.run_id}) is not the one that was found before:"
            f" its sha256 is {head.sha256[:12]}, not {cell.head[:12]}; the file was changed"
        )
    return head


def trained_together(
    contexts: Sequence[tuple[PlannedTask, Context]],
) -> list[list[tuple[PlannedTask, Context]]]:
    """Split tasks into lists that one training loop can train on the same batches, ordered by the
    first task of each list."""
    lists: dict[str, list[tuple[PlannedTask, Context]]] = {}
    for task, context in contexts:
        key = None
        if isinstance(task.probe, GroupedProbe) and context.head is None:
            key, context = task.probe.join_group(context)
        lists.setdefault(key or task.name, []).append((task, context))
    return list(lists.values())


@contextmanager
def computing_on(device: torch.device) -> Iterator[None]:
    """Make ``device`` the current one while the block runs, and compute float32 products exactly,
    without TF32."""
    with on_device(device), float32_products(tf32=False):
        yield
