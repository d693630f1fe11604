"""Probes while a model is trained: inside the training, or beside it on the checkpoints that it
writes.

Inside, every so many steps the model is scored on other data than it learns from, by ``evaluate``,
and the training goes on as if nothing had happened, bit by bit::

    probe = InLoop(["voc/linear", "imagefolder/knn"], every=1000, data_root="datasets")
    for step, batch in enumerate(loader):
        ...
        probe(model, step)

``watch`` scores the checkpoints of a folder: a run of the suite for each, and their curves by
training step in one MLflow run. A scored checkpoint is not scored again.
"""

from __future__ import annotations

import csv
import math
import operator
import random
import shlex
import sys
import time
import uuid
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any, Literal

import cv2
import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch import distributed as dist

from backbones.checkpoint import load_checkpoint
from backbones.weights import WEIGHTS_SUFFIXES, checkpoints
from benchmark.api import Results, check, evaluate
from benchmark.options import WatchOptions, run_options
from benchmark.plan import Plan, make_plan
from benchmark.progress import console
from benchmark.result import RunResult
from benchmark.run import run
from cliptex_common.device import current_device, device_count, float32_products
from cliptex_common.errors import UserError
from cliptex_common.files import atomic_write, lock_path, locked
from cliptex_common.settings import as_list, as_pairs, check_arguments
from reports.records import TAGS, metric_key
from reports.store import connect
from reports.tracking import Tracker


def watch(options: WatchOptions, on_result: Callable[[RunResult], None]) -> int:
    """Score checkpoints until the end that the options define; returns how many had a failed task.

    Raises:
        UserError: no such folder, more than one backbone, with ``once`` no checkpoint, or as
            ``run``.
        KeyboardInterrupt: interrupted; the same command continues.
    """
    if not (options.suite or options.tasks):
        options = replace(options, suite="companion")
    plan = make_plan(run_options(options, only=True))
    if len(plan.backbones) != 1:
        raise UserError(f"watch takes one backbone, not {', '.join(plan.backbones)}")
    if not options.dir.is_dir():
        raise UserError(f"no folder {options.dir}; give the one with the training's checkpoints")
    if options.once and not checkpoints(options.dir):
        raise UserError(
            f"--dir {options.dir} has no checkpoint: a file ({', '.join(WEIGHTS_SUFFIXES)}) or"
            " folder whose name has its step, such as step-500.safetensors"
        )
    lock = lock_path("watch", [plan.as_config_file(), str(options.dir.resolve())])
    message = f"another process watches {options.dir}: waiting for it"
    with locked(lock, lambda: console.print(message)):  # its name is a hash of what is watched
        return _follow(options, plan, lock.stem, on_result)


def _follow(
    options: WatchOptions, plan: Plan, key: str, on_result: Callable[[RunResult], None]
) -> int:
    """Score checkpoints in the MLflow run of the watch ``key``."""
    tracker = Tracker(plan.experiment)
    earlier = next(tracker.search(**{TAGS["watch_key"]: key}), None)
    stored = earlier.tags if earlier else {}
    scored = {int(tag[5:]): stored[tag] for tag in stored if tag.startswith("step.")}
    resume = earlier.run_id if earlier else None
    (column,) = plan.backbones
    names = {"backbone": column, "suite": plan.suite.name}
    tags = {"stage": "watch", "seed": str(options.seed), TAGS["watch_key"]: key, **names}
    title = f"watch · {column} · {plan.suite.name}"
    failures = 0
    with tracker.run(title, tags=tags, params=names, resume=resume) as curves:
        for step, path in _arrivals(options, scored):
            console.print(f"step {step}: {path.name}", style="bold")
            label = f"{column} step {step}"  # by which reports know it
            result = run(run_options(options, only=True, weights=path, name=label))
            for cell in result.cells:
                metrics = {f"{cell.task}/{name}": value for name, value in cell.metrics.items()}
                curves.log_metrics(metrics, step)
            curves.flush()
            for run_id in result.run_ids.values():
                tracker.client.set_tags(run_id, {"step": step})
            if result.failed:  # the next watch tries it again
                failures += 1
            else:
                curves.set_tags({f"step.{step}": scored[step]})
            on_result(result)
    console.print(f"curves by training step: MLflow run {curves.id}, {title}")
    return failures


def _arrivals(options: WatchOptions, scored: dict[int, str]) -> Iterator[tuple[int, Path]]:
    """Step and file of each new or changed checkpoint, in order of steps; waits for the next.

    Args:
        scored: step → ``_version`` of the file that was scored; updated.
    """
    last = max(scored, default=-1)
    while options.once or last < (options.until or math.inf):
        for step, path in checkpoints(options.dir).items():
            if scored.get(step) != (version := _version(path)):
                scored[step] = version
                try:
                    load_checkpoint(path)
                except UserError as error:
                    if options.once:
                        raise
                    console.print(f"step {step}: {error}; trying again when it changes")
                    continue
                last = max(last, step)
                yield step, path
                break  # a run takes long: look again, to keep the order of steps
        else:  # nothing new
            if options.once:
                return
            time.sleep(options.every)


def write_weights(folder: Path, step: int, state: Mapping[str, Tensor]) -> Path:
    """Write the weights of a step as ``checkpoints`` finds them; returns the file. Raises
    ``UserError`` as ``atomic_write``."""
    path = folder / f"step-{step}.safetensors"
    # safetensors refuses tensors that share memory
    tensors = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in state.items()}
    with atomic_write(path) as part:
        save_file(tensors, part)
    return path


def _version(path: Path) -> str:
    """Size and time of a file, by which it is known to have changed; '' without it."""
    try:
        status = path.stat()
    except FileNotFoundError:  # the training has removed it meanwhile
        return ""
    return f"{status.st_size}-{status.st_mtime_ns}"


WAIT = timedelta(days=7)  # of the other processes, while the first one evaluates
COLUMNS = ("step", "task", "metric", "value", "run", "seconds", "training")


class InLoop:
    """Scores a model every so many steps of its training.

    A copy of the model is evaluated, in evaluation mode; random generators, flags of torch and the
    active MLflow run are those of the training again afterwards. Numbers are logged as
    ``probe/TASK/METRIC`` at the step to the active MLflow run, to ``wandb.run`` and to ``log``, and
    written to ``folder``/probes.csv.

    Where several processes train, all of them must create it and call it. By ``where="here"`` the
    first evaluates and the others wait. By ``where="watch"`` the first writes a file of weights,
    which ``python -m benchmark watch`` scores elsewhere.

    Args:
        tasks: as of ``evaluate``.
        every: steps between two evaluations; step 0 is not evaluated. Where steps go up by more
            than one, the first is evaluated that reaches or passes a multiple of it.
        encoder: model → the module to score, as ``evaluate`` takes it; by default the model itself,
            without the wrappers of ``DistributedDataParallel`` and ``torch.compile``.
        images: how its images are prepared; see ``evaluate``.
        name: of the backbone in results; by default that of the module's class.
        log: what else to log to: an object with ``log_metrics(metrics, step)`` (a Lightning logger)
            or ``add_scalar(name, value, step)`` (a SummaryWriter).
        where: ``here``, ``watch``, or ``auto``: here in a training of one process, else watch.
        state: model → its state dict, for ``watch``; called in all processes. A model whose
            weights are in pieces (FSDP, ZeRO-3) needs it.
        on_error: ``warn`` to go on without the numbers, or ``raise``.
        folder: of probes.csv and of the weights for ``watch``. Trainings that share it are told
            apart by the column ``training``, which is another for each ``InLoop``.
        **options: of ``evaluate``: ``data_root``, ``settings``, ``seeds``, ``experiment`` …; not
            ``weights``, ``heads`` and ``executor``.

    Raises:
        UserError: tasks, settings, options, data or the folder cannot be used.

    Attributes:
        seconds: that evaluations have taken in this process so far.
    """

    @check_arguments
    def __init__(
        self,
        tasks: str | Sequence[str],
        *,
        every: int,
        encoder: Callable[[Any], nn.Module] | None = None,
        images: Any = None,
        name: str | None = None,
        log: Any = None,
        where: Literal["auto", "here", "watch"] = "auto",
        state: Callable[[Any], Mapping[str, Tensor]] | None = None,
        on_error: Literal["warn", "raise"] = "warn",
        folder: str | Path = "probes",
        **options: Any,
    ) -> None:
        if not tasks:
            raise UserError("tasks: give names of tasks, such as imagefolder/knn")
        for option in {"weights", "heads", "executor"} & options.keys():
            raise UserError(f"InLoop has no option {option!r}: it scores the model of this process")
        if log is not None and not (hasattr(log, "log_metrics") or hasattr(log, "add_scalar")):
            raise UserError(
                f"log={log!r}: give one logger, with log_metrics(metrics, step) or"
                " add_scalar(name, value, step)"
            )
        self.tasks, self.every, self.encoder = tasks, _count("every", every, 1), encoder
        self.subject = {"name": name, "images": images}
        self.loggers = [] if log is None else [log]
        self.state, self.on_error = state, on_error
        self.folder, self.options = Path(folder), options
        self.rank, world = _process()
        self.where = ("watch" if world > 1 else "here") if where == "auto" else where
        self.group = dist.new_group(backend="gloo", timeout=WAIT) if world > 1 else None
        self.seconds, self._started = 0.0, time.monotonic()
        self._last: int | None = None
        self._id = uuid.uuid4().hex[:8]
        if self.rank == 0:
            try:
                self._write_rows([])
            except OSError as error:
                raise UserError(f"folder={folder}: {error.strerror}; name another one") from error
            if self.where == "here":
                with untouched():
                    check(tasks, **self.subject, **options)

    def __call__(self, model: Any, step: int) -> Results | None:
        """The numbers if an evaluation is due at ``step`` and this process makes it, else None.

        Raises:
            UserError: ``step`` is not 0, 1, 2 …
            Exception: what failed, with ``on_error="raise"``.
        """
        step = _count("step", step, 0)
        previous = max(step - 1, 0) if self._last is None else self._last
        self._last, started = step, time.monotonic()
        if step // self.every <= previous // self.every:  # no multiple after previous, up to step
            return None
        try:
            return self._score(model, step)
        except Exception as error:
            if self.on_error == "raise":
                raise
            reason = f"probes at step {step} failed ({type(error).__name__}: {error})"
            warnings.warn(f"{reason}; the training goes on", stacklevel=2)
            return None
        finally:
            if self.group is not None and self.where == "here":
                dist.barrier(self.group)
            self.seconds += time.monotonic() - started

    @property
    def share(self) -> float:
        """The share of the time since its creation that evaluations have taken."""
        return self.seconds / max(time.monotonic() - self._started, 1e-9)

    def _score(self, model: Any, step: int) -> Results | None:
        if self.where == "watch":
            if self.state:
                state = self.state(model)
            else:
                state = _with_all_weights(self._module(model)).state_dict()
            if self.rank == 0:
                path = write_weights(self.folder / "steps", step, state)
                console.print(f"step {step}: {path}; score it with {self._command(path.parent)}")
            return None
        if self.rank:
            return None
        started = time.monotonic()
        with untouched():
            module = _with_all_weights(self._module(model))
            name = self.subject["name"] or type(module).__name__.lower()
            subject = {**self.subject, "name": f"{name} step {step}"}  # by which reports know it
            results = evaluate(module, self.tasks, **subject, **self.options)
        for run_id in results.parents:
            connect(results.tracking_uri).set_tags(run_id, {"step": step})
        for row in results.frame[results.frame.status == "failed"].itertuples():
            if self.on_error == "raise":
                raise UserError(f"{row.task} at step {step}: {row.reason}")
            warnings.warn(f"{row.task} at step {step} failed: {row.reason}", stacklevel=3)
        self._log(results, step, time.monotonic() - started)
        return results

    def _command(self, folder: Path) -> str:
        """The command of ``watch`` for the same tasks, settings and options, except the data, which
        may be elsewhere."""
        words = f"python -m benchmark watch --backbone NAME --dir {folder} --data-root DIR".split()
        values = {name: self.options.get(name) for name in ("suite", "limit", "seed", "experiment")}
        values["task"] = ",".join(as_list(self.tasks))
        words += [f"--{name}={value}" for name, value in values.items() if value]
        words += ["--partial"] * bool(self.options.get("partial"))
        settings = as_pairs(self.options.get("settings") or {})
        words += [f"--set={key}={text}" for key, text in settings.items()]
        return shlex.join(words)

    def _module(self, model: Any) -> nn.Module:
        model = _unwrapped(model)
        return _unwrapped(self.encoder(model)) if self.encoder else model

    def _log(self, results: Results, step: int, seconds: float) -> None:
        frame = results.frame[results.frame.value.notna()]
        numbers = frame.groupby(["task", "metric"], sort=False, as_index=False)
        means: Any = numbers.agg(value=("value", "mean"), run=("run", "first"))
        rows = [
            [step, row.task, row.metric, row.value, row.run, round(seconds, 1), self._id]
            for row in means.itertuples()
        ]
        metrics = {f"probe/{row.task}/{row.metric}": row.value for row in means.itertuples()}
        metrics["probe/seconds"] = seconds
        with ExitStack() as stack:  # each from the last to the first, whatever the others raise
            stack.callback(self._write_rows, rows)
            for log_metrics in reversed(list(self._targets())):
                stack.callback(log_metrics, metrics, step)

    def _write_rows(self, rows: Sequence[Sequence[Any]]) -> None:
        """Append to the file of numbers. Of ``watch``, which has none, the folder is made."""
        if self.where == "watch":
            return (self.folder / "steps").mkdir(parents=True, exist_ok=True)
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / "probes.csv"
        with (
            locked(lock_path("probes", str(path.absolute()))),
            path.open("a", encoding="utf-8", newline="") as file,
        ):
            csv.writer(file).writerows([*([] if file.tell() else [COLUMNS]), *rows])

    def _targets(self) -> Iterator[Callable[[dict[str, float], int], None]]:
        """What logs metrics at a step: what this training has begun to use, and what was named."""
        mlflow, wandb = sys.modules.get("mlflow"), sys.modules.get("wandb")
        if mlflow is not None and mlflow.active_run() is not None:
            yield lambda metrics, step: mlflow.log_metrics(
                {metric_key(name): value for name, value in metrics.items()}, step=step
            )
        if wandb is not None and getattr(wandb, "run", None) is not None:
            wandb.define_metric("probe/*", step_metric="probe/step")  # its own axis
            yield lambda metrics, step: wandb.log({**metrics, "probe/step": step})
        run = getattr(wandb, "run", None)
        for logger in self.loggers:
            if run is not None and getattr(logger, "experiment", None) is run:
                continue  # a WandbLogger of this run
            yield getattr(logger, "log_metrics", None) or _scalars(logger)


def _count(option: str, value: Any, least: int) -> int:
    """A number of steps. Raises ``UserError`` for anything else."""
    try:
        count = operator.index(value)
    except TypeError:
        count = -1
    if count < least:
        raise UserError(f"{option}={value!r}: give a whole number of steps, {least} or more")
    return count


def _scalars(writer: Any) -> Callable[[dict[str, float], int], None]:
    """Log to a SummaryWriter."""

    def log_metrics(metrics: dict[str, float], step: int) -> None:
        for name, value in metrics.items():
            writer.add_scalar(name, value, step)

    return log_metrics


def _unwrapped(module: Any) -> Any:
    """A module without the wrappers of ``torch.compile`` and of several processes or devices."""
    while True:
        if isinstance(module, nn.parallel.DistributedDataParallel | nn.DataParallel):
            module = module.module
        elif hasattr(module, "_orig_mod"):
            module = module._orig_mod
        else:
            return module


def _process() -> tuple[int, int]:
    """Rank and number of the processes that train together."""
    if dist.is_available() and dist.is_initialized():
        return dist.get_rank(), dist.get_world_size()
    return 0, 1


def _with_all_weights(module: nn.Module) -> nn.Module:
    """``module``; raises ``UserError`` if this process has only pieces of its weights."""
    from torch.distributed.fsdp import FullyShardedDataParallel

    pieces = ("full_tensor", "ds_tensor")  # of parameters of FSDP2 and of DeepSpeed's ZeRO-3
    is_cut = any(isinstance(each, FullyShardedDataParallel) for each in module.modules())
    if is_cut or any(hasattr(each, name) for each in module.parameters() for name in pieces):
        raise UserError(
            "this process has pieces of the weights only (FSDP, ZeRO-3); give InLoop"
            " where='watch' and state=model → its whole state dict"
        )
    return module


@contextmanager
def untouched() -> Iterator[None]:
    """Run a block in torch's default state, with exact products of float32 tensors; afterwards all
    state that a training depends on is as it was before: generators of python, numpy, torch and of
    the accelerators, autocast, grad mode, flags of cuDNN and TF32, the default type and device, and
    numbers of threads.

    Inside, this process trains with no others: libraries that would wait for them do not.
    """
    device = current_device()
    count = device_count()
    module = torch.get_device_module(device)
    generators = random.getstate(), np.random.get_state(), torch.get_rng_state()
    indices: list[tuple[int, ...]] = [(index,) for index in range(count)] if count > 1 else [()]
    devices = [module.get_rng_state(*index) for index in indices] if count else []
    cudnn = torch.backends.cudnn
    flags = {name: getattr(cudnn, name) for name in ("enabled", "benchmark", "deterministic")}
    threads, opencv, dtype = torch.get_num_threads(), cv2.getNumThreads(), torch.get_default_dtype()
    try:
        with ExitStack() as stack:
            for kind in {"cpu", device.type}:
                stack.enter_context(torch.autocast(kind, enabled=False))
            stack.enter_context(torch.inference_mode(False))
            stack.enter_context(torch.enable_grad())
            stack.enter_context(torch.device("cpu"))
            stack.enter_context(_without_processes())
            stack.enter_context(float32_products(tf32=False))
            torch.set_default_dtype(torch.float32)
            yield
    finally:
        random.setstate(generators[0])
        np.random.set_state(generators[1])
        torch.set_rng_state(generators[2])
        for index, state in zip(indices, devices, strict=False):
            module.set_rng_state(state, *index)
        for name, value in flags.items():
            setattr(cudnn, name, value)
        torch.set_default_dtype(dtype)
        torch.set_num_threads(threads)
        cv2.setNumThreads(opencv)


@contextmanager
def _without_processes() -> Iterator[None]:
    """As if ``torch.distributed`` were not initialized."""
    if not dist.is_available():
        yield
        return
    members: Any = dist.GroupMember  # ``dist.is_initialized`` asks whether this has a ``WORLD``
    world, members.WORLD = members.WORLD, None
    try:
        yield
    finally:
        members.WORLD = world


def LightningProbe(tasks: str | Sequence[str], **options: Any) -> Any:
    """``InLoop`` as a callback of Lightning, which logs to the trainer's loggers too. A function,
    because the class has a base that is imported here.

    Args:
        tasks, **options: as of ``InLoop``; ``every`` counts the trainer's ``global_step``.

    Raises:
        UserError: Lightning is not installed, or as ``InLoop``.
    """
    base = _class_of(("lightning.pytorch", "pytorch_lightning"), "Callback")
    probe = InLoop(tasks, **options)
    named = list(probe.loggers)

    class Callback(base):  # type: ignore[misc, valid-type]
        def on_train_batch_end(self, trainer: Any, pl_module: Any, *args: Any) -> None:
            if not trainer.sanity_checking:
                probe.loggers = [*named, *trainer.loggers]
                probe(pl_module, trainer.global_step)

    callback = Callback()
    callback.probe = probe
    return callback


def TransformersProbe(tasks: str | Sequence[str], **options: Any) -> Any:
    """``InLoop`` as a callback of the Trainer of transformers; a function as ``LightningProbe``.

    Args:
        tasks, **options: as of ``InLoop``; ``every`` counts the trainer's ``global_step``.

    Raises:
        UserError: as ``InLoop``.
    """
    from transformers import TrainerCallback

    probe = InLoop(tasks, **options)

    class Callback(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **context: Any) -> None:
            probe(context["model"], state.global_step)

    callback = Callback()
    callback.probe = probe  # type: ignore[attr-defined]
    return callback


def _class_of(modules: Sequence[str], name: str) -> type:
    """A class of the first module that is installed; of one that is imported already before."""
    from importlib import import_module

    for module in sorted(modules, key=lambda each: each not in sys.modules):
        try:
            return getattr(import_module(module), name)
        except ModuleNotFoundError:
            continue
    raise UserError("LightningProbe needs Lightning: pip install lightning")
