"""Executors, which run units of work on this machine, SLURM or Ray behind one interface, and their
options.

An executor takes module-level functions with plain arguments and returns
``concurrent.futures.Future``. The base class queues units by priority, runs a unit again if its
worker died, shows the progress and output of units, and lets interrupted units save their state.
"""

from __future__ import annotations

import asyncio
import gc
import importlib
import math
import os
import threading
import time
import uuid
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import BrokenExecutor, Future
from contextlib import (
    AbstractAsyncContextManager,
    AbstractContextManager,
    ExitStack,
    contextmanager,
    suppress,
)
from dataclasses import dataclass, field, replace
from enum import IntEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Self

from pydantic import AfterValidator, NonNegativeInt

from benchmark.progress import Bar, Overview, ProgressLine, console, reporter, reporting
from benchmark.unit import (
    GPUS,
    Outcome,
    Unit,
    WorkerLost,
    remove_abandoned,
    remove_folder,
    software,
    threads,
    threads_per_unit,
)
from cliptex_common.errors import UserError, suggest
from cliptex_common.files import check_creatable, home, lock_path, locked, locked_async, make_folder
from cliptex_common.process import describe_variables, is_accelerator_name, may_have_accelerator
from cliptex_common.registry import Registry, instance_of
from cliptex_common.settings import Precision, options_dataclass

if TYPE_CHECKING:
    import torch

    from cliptex_common.device import Device
    from reports.tracking import Tracker


def _check_device(name: str) -> str:
    """Raise ``UserError`` for a device that torch does not know."""
    if name not in ("auto", "cpu"):
        from cliptex_common.device import is_available  # needs torch

        is_available(name)
    return name


DeviceName = Annotated[str, AfterValidator(_check_device)]


@options_dataclass
class ExecutionOptions:
    """Where units of work run.

    Attributes:
        multi_node: whether a unit may compute in several processes and on several nodes
            (``--executor-arg nodes=2``).
    """

    multi_node = False  # no option: only `train` has it
    executor: str = "local"
    """local, slurm or ray; see `list executors`"""
    executor_arg: Mapping[str, str] = field(default_factory=dict)
    """a setting of the executor (repeatable): partition=gpu, time=240, address=auto …"""
    jobs: NonNegativeInt = 0
    """units of work at once, which share the cores; 0: one per GPU, else one per quarter of the
    cores (at most 8 cores each); 1: in this process"""
    num_workers: NonNegativeInt | None = None
    """data-loading processes of each unit of work; on a CPU results do not depend on them (default:
    cores divided by units at once; 2 on SLURM)"""
    device: DeviceName = "auto"
    """auto, cpu, or an accelerator as torch names it, perhaps with its number"""

    @property
    def uses_gpus(self) -> bool:
        """Whether units compute on GPUs, if there are any."""
        is_open = self.device == "auto" and may_have_accelerator()
        return is_open or is_accelerator_name(self.device)

    def executor_integer(self, key: str, default: int, minimum: int = 1) -> int:
        """A setting of the executor. Raises ``UserError`` if it is below ``minimum``."""
        text = self.executor_arg.get(key, str(default))
        if not text.isdecimal() or int(text) < minimum:
            raise UserError(f"--executor-arg {key}={text}: give an integer, {minimum} or more")
        return int(text)

    def executor_library(self, name: str) -> Any:
        """A module that only this executor needs. Raises ``UserError`` if it is not installed."""
        try:
            return importlib.import_module(name)
        except ImportError:
            raise UserError(
                f"--executor {self.executor} needs {name}: pip install -e '.[scale]' in the"
                " checkout"
            ) from None


def choose_device(name: str) -> torch.device:
    """The device called ``name``; for ``auto`` the accelerator of this machine, or the CPU if there
    is none or this unit was assigned none.

    Raises:
        UserError: the device does not exist, or this unit was assigned a GPU that torch does not
            find: it would compute on the CPU for days.
    """
    import torch

    from cliptex_common.device import current_device, is_accelerator, is_available

    if name != "auto":
        if not is_available(name):
            raise UserError(f"no device {name!r} on this machine; use cpu or auto")
        return torch.device(name)
    assigned = os.environ.get(GPUS)
    device = torch.device("cpu") if assigned == "0" else current_device()
    if assigned not in (None, "0") and not is_accelerator(device):
        raise UserError(
            f"this unit of work was assigned a GPU ({describe_variables() or 'of all'})"
            " but torch finds none; use --device cpu"
        )
    return device


def decide_precision(options: ExecutionOptions, option: str = "--set") -> tuple[Precision, str]:
    """What replaces the setting ``precision=auto``: bf16 where the units' device is an accelerator
    that computes in it, else fp32.

    That device is the one of ``options``; if it is ``auto``, an accelerator on a cluster, else what
    this machine has. If this machine has no such device, the precision stays ``auto``, and a worker
    is asked (``benchmark.run.ask_for_precision``).

    Args:
        option: the option that changes a task's settings, which the note names.

    Returns:
        the precision, and a note to print.
    """
    device: Device = options.device
    is_cluster = options.executor == "slurm" or "address" in options.executor_arg
    precision: Precision = "fp32"
    if device != "cpu" and (is_cluster or options.uses_gpus):
        from cliptex_common.device import current_device, is_available, planned_device, prefers_bf16

        if device == "auto":
            device = planned_device() if is_cluster else current_device()
        if not is_available(device):
            choice = f"{option} precision=fp32 or bf16 decides"
            return "auto", f"precision bf16 if the workers' {device} computes in it ({choice})"
        precision = "bf16" if prefers_bf16(device) else "fp32"
    name = str(device) if is_accelerator_name(str(device)) else "the CPU"
    opposite = "fp32" if precision == "bf16" else "bf16"
    return precision, f"precision {precision} on {name} ({option} precision={opposite})"


MAX_LOST = 2  # times that a unit whose worker died is run again
MAX_PREEMPTED = 20  # times that a unit that was stopped, and has saved its state, is run again
POLL = 0.5  # seconds between two looks at the units
SAVE_SECONDS = 90.0  # for interrupted units to save their state
MAX_LOADING_PROCESSES = 16  # default loading processes of a unit, at most


class Priority(IntEnum):
    """Which waiting unit starts first: the one with the highest."""

    DEFAULT = 0
    TRAINING = 1
    LONG_TRAINING = 2
    PREPARATION = 3  # experts, labels and pre-training, which trainings wait for
    FIRST_NUMBERS = 4  # probes that wait for no training
    LOADING = 5  # of a backbone, which its probes wait for


@dataclass(eq=False)
class _QueuedUnit:
    """A unit between ``submit`` and the end of its future."""

    unit: Unit
    priority: int
    line: ProgressLine
    future: Future[Any] = field(default_factory=Future)  # of the caller, over all attempts
    worker_future: Future[Outcome] = field(default_factory=Future)  # of the attempt that runs
    attempts: Counter[str] = field(default_factory=Counter)  # by reason of their end
    printed: int = 0  # bytes of its log


class Executor(ABC):
    """Runs units of work; a context manager.

    In its block, ``reporter()`` of this process is the executor's bar. Leaving the block waits for
    all units; after an error it lets them save and stops them. A subclass implements ``_start`` and
    is registered in ``EXECUTORS``.

    Attributes:
        about: one line for ``list executors``, where ``EXECUTORS`` has none.
        setting_names: keys of ``--executor-arg``; ``None`` accepts any.
        is_remote: units may run on other machines.
        in_this_process: units run one after the other in the submitting process.
        slots: estimated number of concurrent units (one per GPU if there are GPUs).
        cpu_slots: estimated number of concurrent units of one core each without a GPU.
        has_gpus: whether a unit can have a GPU.
        num_workers: loading processes of a unit.
        threads: computing threads of a unit without a GPU.
    """

    about: ClassVar[str] = ""
    setting_names: ClassVar[Collection[str] | None] = ()
    is_remote: bool = False
    in_this_process: bool = False
    slots: int = 1
    cpu_slots: int = 1
    has_gpus: bool = False
    num_workers: int = 2
    threads: int = 1

    def __init__(self, options: ExecutionOptions, bar: Bar) -> None:
        self.options, self.bar, self.overview = options, bar, Overview(bar)
        self.closing = False
        if options.num_workers is not None:
            self.num_workers = options.num_workers
        # only the scheduler's thread removes from these
        self._waiting: list[_QueuedUnit] = []
        self._running: list[_QueuedUnit] = []
        self._wake = threading.Event()  # a unit was submitted or has ended
        self._on_exit = ExitStack()
        self._scheduler = threading.Thread(target=self._schedule, name="scheduler", daemon=True)
        for key in options.executor_arg:
            if self.setting_names is not None and key not in self.setting_names:
                hint = suggest(key, self.setting_names)
                raise UserError(
                    f"--executor-arg {key}: {options.executor} has no such setting; {hint}"
                )

    @abstractmethod
    def _start(self, unit: Unit) -> Future[Outcome] | None:
        """Run ``execute(unit)`` in a worker, or return None if all resources are in use.

        The future goes to ``_result`` when done. If ``_start`` itself raises, only this unit fails.
        """

    def check(self) -> None:
        """Refuse what the command would not get far with. A dry run does this, and a run before it
        starts.

        Raises:
            UserError: this machine lacks the device, units on other machines cannot share the
                MLflow store, or ``$CLIPTEX_HOME`` or the store's folder cannot be written.
        """
        from reports.store import sqlite_file, tracking_uri

        if not self.is_remote and self.options.uses_gpus:
            choose_device(self.options.device)
        uri = tracking_uri()
        if self.is_remote and uri.startswith("sqlite:"):
            raise UserError(
                f"--executor {self.options.executor} runs units on other machines, which cannot"
                f" share the file {uri}; start `mlflow server` and give --tracking-uri"
                " http://HOST:PORT"
            )
        file = sqlite_file(uri)
        for folder in (home(), file.parent if file else home()):
            check_creatable(folder)

    def preview(self, names: Sequence[str]) -> list[str]:
        """Lines that say how units of these names, which compute on the device, would run.

        Raises:
            UserError: the engine refuses them.
        """
        from reports.tables import count

        cpus, gpus = self.resources().values()
        jobs, cores = count(len(names), "job"), count(cpus, "core")
        return [f"{jobs} of {count(gpus, 'GPU')} and {cores} each, {self.slots} at once"]

    def _stop(self) -> None:  # noqa: B027
        """Withdraw units that have not started; running ones see their ``stop_file``."""

    def release(self) -> None:  # noqa: B027
        """Release all resources; units that still run are killed."""

    def _poll(self) -> None:  # noqa: B027
        """Check on running units; called at least every ``POLL`` seconds."""

    def _result(self, future: Future[Outcome]) -> Any:
        """The result of a unit that has ended. Raises its error, ``KeyboardInterrupt`` if it was
        stopped, and ``WorkerLost`` or ``BrokenExecutor`` (of process pools) if its worker died."""
        outcome = future.result()  # raises if the worker died
        return outcome.result()  # raises what the unit raised

    def _set_capacity(self, cpus: int, gpus: int, most_threads: int | None = None) -> None:
        """Set ``slots`` and the like for units that share ``cpus`` and ``gpus``."""
        self.has_gpus = gpus > 0
        share = threads_per_unit(cpus, self.options.jobs)
        self.threads = min(share, most_threads or share)
        jobs = self.options.jobs or math.inf
        self.slots = int(min(jobs, gpus or max(1, cpus // self.threads)))
        self.cpu_slots = int(min(jobs, cpus))
        if self.options.num_workers is None:
            self.num_workers = max(1, min(MAX_LOADING_PROCESSES, cpus // self.slots))

    @property
    def device(self) -> str:
        """The device as units name it: without a number in a worker, which sees one GPU alone."""
        device = self.options.device
        return device if self.in_this_process else device.partition(":")[0]

    def expect(self, units: int) -> None:  # noqa: B027  nothing to do elsewhere
        """Called before the first unit, where it is known how many there will be."""

    def resources(self) -> dict[str, Any]:
        """``cpus`` and ``gpus`` of a unit that computes on the device, whatever else is running.

        Without a GPU, the number of computing threads (``cpus``) follows from ``--jobs`` and the
        cores (``threads_per_unit``). With a GPU, it is one more than the number of loading
        processes, each of which gets a core.
        """
        if is_accelerator_name(self.device) or (self.device == "auto" and self.has_gpus):
            return {"cpus": self.num_workers + 1, "gpus": 1}
        return {"cpus": self.threads, "gpus": 0}

    def submit(
        self,
        function: Callable[..., Any],
        *args: Any,
        cpus: int = 1,
        gpus: int = 0,
        name: str = "",
        kind: str = "",
        priority: int = Priority.DEFAULT,
    ) -> Future[Any]:
        """Run ``function(*args)`` in a worker.

        Args:
            function: module-level; it reports progress to
                ``benchmark.progress.reporter()``.
            args: plain values (paths, names, settings).
            cpus: number of reserved cores and of computing threads.
            gpus: number of GPUs that it sees.
            name: shown to the user.
            kind: ``probe``, ``train`` …: the time left follows from finished units of the kind.

        Returns:
            a future that raises the function's error, or ``WorkerLost`` when its worker died for
            the third time or it was stopped for the 21st time.
        """
        folder = home().absolute() / "tasks" / uuid.uuid4().hex  # where all units have theirs
        unit = Unit(function, args, name or function.__name__, folder, cpus, gpus, kind)
        self.overview.submitted[kind] += 1
        if self.in_this_process:
            return self._run_here(unit)
        if self.is_remote:
            unit.folder.mkdir(parents=True)
            unit = replace(unit, software=software())
        queued = _QueuedUnit(unit, priority, self.bar.line())
        if self.closing:
            self._drop(queued)
        else:
            self._waiting.append(queued)
            self._wake.set()
        return queued.future

    async def run(
        self, function: Callable[..., Any], *args: Any, on_device: bool = True, **options: Any
    ) -> Any:
        """The result of a submitted unit.

        Args:
            on_device: it gets ``resources()``; otherwise one core.
            options: name, kind and priority, as ``submit`` takes them.
        """
        resources: dict[str, Any] = self.resources() if on_device else {}
        return await asyncio.wrap_future(self.submit(function, *args, **resources, **options))

    def _run_here(self, unit: Unit) -> Future[Any]:
        """Run a unit at once; its errors keep their traceback, an interruption is not caught."""
        future: Future[Any] = Future()
        if not gc.get_freeze_count():
            gc.freeze()  # what is imported stays: collections need not look at it again
        self.overview.start(unit.folder, unit.kind)
        try:
            with threads(unit.cpus):
                future.set_result(unit.call())
        except Exception as error:
            future.set_exception(error)
        self.overview.end(unit.folder, unit.kind, future.exception() is None)
        return future

    def __enter__(self) -> Self:
        """Clear folders of lost units, and start the scheduler."""
        folder = make_folder(home() / "tasks", 0o700)  # arguments may contain passwords
        remove_abandoned(folder)
        self._on_exit.enter_context(reporting(self.bar))
        self._scheduler.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: object, trace: object) -> None:
        # the block, then the callbacks from the last to the first, each whatever the others raise
        with self._on_exit as stack:
            stack.callback(self._drop_all)
            stack.callback(self.release)
            stack.callback(self._close)
            while kind is None and (self._waiting or self._running):
                time.sleep(0.02)

    def _close(self) -> None:
        """Start no more units; wait until running ones have saved their state."""
        self.closing = True
        self._wake.set()
        self._scheduler.join()
        self.overview.hide()

    def _drop_all(self) -> None:
        for queued in (*self._waiting, *self._running):
            self._drop(queued)

    def _schedule(self) -> None:
        """Run the scheduler thread, the only one that starts and follows units."""
        bug = None
        try:
            while not self.closing:
                self._wake.wait(POLL)
                self._wake.clear()
                with suppress(OSError):
                    self._poll()
                for queued in list(self._running):
                    self._show(queued)
                    if queued.worker_future.done():
                        self._finish(queued)
                        self._running.remove(queued)
                self._start_waiting()
                self.overview.show(self.slots)
        except Exception as error:
            self.closing, bug = True, error
        deadline = time.monotonic() + SAVE_SECONDS
        for queued in self._running:
            with suppress(OSError):  # a full disk
                queued.unit.folder.mkdir(parents=True, exist_ok=True)
                queued.unit.stop_file.touch()
        with suppress(Exception):
            self._stop()
        while time.monotonic() < deadline:
            if all(queued.worker_future.done() for queued in self._running):
                break
            with suppress(Exception):
                self._poll()
            time.sleep(0.05)
        if bug is not None:  # of this class or a subclass: all units fail with it
            for queued in (*self._waiting, *self._running):
                with suppress(Exception):  # one of them may have ended before the bug
                    self._end(queued, error=bug)
            self._waiting, self._running = [], []

    def _start_waiting(self) -> None:
        """Start waiting units by priority, those with GPUs and those without separately.

        A unit that does not fit blocks those behind it; otherwise one that needs several cores or
        GPUs would never start.
        """
        blocked: set[bool] = set()  # True for units with GPUs, False for those without
        for queued in sorted(self._waiting, key=lambda each: -each.priority):
            with_gpus = queued.unit.gpus > 0
            if queued.future.cancelled():
                self._waiting.remove(queued)
                self._end(queued)
            elif with_gpus not in blocked and len(self._running) < (self.options.jobs or math.inf):
                worker_future: Future[Outcome] | None
                try:
                    worker_future = self._start(queued.unit)
                except Exception as error:  # fails this unit only
                    worker_future = Future()
                    worker_future.set_exception(error)
                if worker_future is None:
                    blocked.add(with_gpus)
                    continue
                queued.worker_future = worker_future
                self.overview.start(queued.unit.folder, queued.unit.kind)
                self._running.append(queued)
                self._waiting.remove(queued)
                worker_future.add_done_callback(lambda _: self._wake.set())

    def _finish(self, queued: _QueuedUnit) -> None:
        """End a unit whose worker has returned, or let it wait again."""
        try:
            return self._end(queued, self._result(queued.worker_future))
        except (WorkerLost, BrokenExecutor) as error:
            event, limit = "its worker died", MAX_LOST
            reason = str(error) if isinstance(error, WorkerLost) else "perhaps out of memory"
        except KeyboardInterrupt:
            event, limit, reason = "it was stopped", MAX_PREEMPTED, "its state is saved"
        except Exception as error:
            return self._end(queued, error=error)
        queued.attempts[event] += 1
        count = queued.attempts[event]
        if count > limit:
            return self._end(queued, error=WorkerLost(f"{event} {count} times: {reason}"))
        self._show(queued, flush=True)
        queued.line.end()
        prefix, queued.line = queued.line.prefix, self.bar.line()
        queued.line.prefix = prefix
        line = f"{queued.unit.name}: {event} ({reason}); running it again, {count} of {limit}"
        console.print(line, style="yellow")
        self._waiting.append(queued)

    def _drop(self, queued: _QueuedUnit) -> None:
        """End a unit without a result, as cancelled."""
        queued.future.cancel()
        self._end(queued)

    def _end(
        self, queued: _QueuedUnit, value: Any = None, error: BaseException | None = None
    ) -> None:
        """Show the rest of a unit's output, remove its folder and end its future."""
        with suppress(Exception):  # the future must end in any case
            self._show(queued, flush=True)
        queued.line.end()
        self.overview.end(queued.unit.folder, queued.unit.kind, error is None)
        remove_folder(queued.unit.folder)
        if queued.future.set_running_or_notify_cancel():
            if error is not None:
                queued.future.set_exception(error)
            else:
                queued.future.set_result(value)

    def _show(self, queued: _QueuedUnit, flush: bool = False) -> None:
        """Print the new lines of a unit's output, on ``flush`` all of it, and draw its progress."""
        with suppress(OSError):
            if queued.unit.log_file.is_file():
                with queued.unit.log_file.open("rb") as log:
                    log.seek(queued.printed)
                    output = log.read()
                output = output if flush else output[: output.rfind(b"\n") + 1]
                queued.printed += len(output)
                for line in output.decode("utf-8", errors="replace").splitlines(keepends=True):
                    # results are indented; where several trials run, they say of which they are
                    indented = queued.line.prefix and line.startswith("  ")
                    text = f"  {queued.line.prefix}{line[2:]}" if indented else line
                    console.print(text, end="")
            queued.line.follow(queued.unit.status_file)


EXECUTORS: Registry[type[Executor]] = Registry(
    "executor", "executors", instance_of(Executor, None, subclass=True)
)


# by name and with their lines, so that no executor's library is imported before it is used
EXECUTORS.register_lazy(
    "local",
    "benchmark.local:LocalExecutor",
    "a process per GPU of this machine, else per quarter of its cores, at most 8 each (default)",
)
EXECUTORS.register_lazy(
    "slurm",
    "benchmark.slurm:SlurmExecutor",
    "a SLURM job per unit (submitit); any option of sbatch as --executor-arg",
)
EXECUTORS.register_lazy(
    "ray",
    "benchmark.ray_cluster:RayExecutor",
    "a Ray task per unit, on a local Ray or a cluster (address=auto)",
)


def make_executor(options: ExecutionOptions, bar: Bar) -> Executor:
    """The executor of ``options``, ready for ``with``.

    Raises:
        UserError: unknown executor or setting, or a library that it needs is not installed.
    """
    return EXECUTORS.find(options.executor)(options, bar)


@contextmanager
def unstarted_executor(options: ExecutionOptions) -> Iterator[Executor]:
    """The executor of a dry run, which has no workers and checks what a run would. Raises
    ``UserError`` as ``make_executor`` and ``Executor.check``."""
    executor = make_executor(options, Bar())
    try:
        executor.check()
        yield executor
    finally:
        executor.release()


@contextmanager
def open_executor_and_tracker(
    options: ExecutionOptions, experiment: str
) -> Iterator[tuple[Executor, Tracker]]:
    """The executor, started, and the MLflow experiment of a command that submits units of work.

    Raises:
        UserError: no such executor, or as ``start_executor``.
        TrackingError: as ``start_executor``.
    """
    with Bar() as bar:
        executor = make_executor(options, bar)
        with start_executor(executor, experiment) as tracker:
            yield executor, tracker


@contextmanager
def start_executor(executor: Executor, experiment: str) -> Iterator[Tracker]:
    """Start an executor and open the MLflow experiment that its units log to. Runs whose process
    has vanished are closed before and after.

    Raises:
        UserError, TrackingError: no such device, or a store that cannot be used (by units on other
            machines).
    """
    from reports.tracking import Tracker

    tracker = None
    try:
        with executor:
            executor.check()
            tracker = Tracker(experiment)
            for name in tracker.close_stale():
                console.print(
                    f"closed the run {name!r}, whose process had vanished", style="yellow"
                )
            yield tracker
    finally:
        if tracker is not None:
            tracker.close_stale()


def exclusive(out: Path) -> AbstractContextManager[None]:
    """Exclude other processes, whatever their command, from creating ``out`` while the block
    runs."""
    return locked(*_lock(out))


def exclusive_async(out: Path) -> AbstractAsyncContextManager[None]:
    """``exclusive`` for a coroutine."""
    return locked_async(*_lock(out))


def _lock(out: Path) -> tuple[Path, Callable[[], None]]:
    message = f"another process creates {out.name}: waiting for it"
    return lock_path("make", str(out.absolute())), lambda: reporter().start(message, 1)
