"""The interface of executors, which run units of work on this machine, SLURM or Ray.

An executor takes module-level functions with plain arguments and returns
``concurrent.futures.Future``. The base class queues tasks by priority, runs a task again if its
worker died, shows the progress and output of tasks, and lets interrupted tasks save their state.
"""

from __future__ import annotations

import asyncio
import bisect
import itertools
import math
import queue
import re
import threading
import time
import uuid
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Mapping
from concurrent.futures import BrokenExecutor, Future
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Self

from benchmark.execution.progress import Bar, Overview, ProgressLine, console
from benchmark.execution.task import (
    Outcome,
    Task,
    remove,
    remove_abandoned,
    software,
    threads_per_task,
)
from common.errors import UserError, nearest
from common.files import home
from common.registry import Registry, instance_of
from reports.mlflow.heartbeat import read

MAX_LOST = 2  # times that a task whose worker died is run again
MAX_PREEMPTED = 20  # times that a task which was asked to stop, and saved its state, is run again
POLL = 0.5  # seconds between two looks at the tasks
SAVE_SECONDS = 90.0  # for interrupted tasks to save their state
DEVICE_KINDS = (
    "train",
    "backbone",
    "probe",
    "label",
    "expert",
)  # kinds of units that use a GPU if there is one
MAX_LOADERS = 16  # default loading processes of a task, at most


class WorkerLost(RuntimeError):
    """The worker of a task died: it was killed, ran out of memory, or its node failed."""


@dataclass(frozen=True)
class ExecutorSpec:
    """The user's choice of an executor.

    Attributes:
        name: ``local``, ``slurm``, ``ray``, or one from another package.
        settings: ``--executor-arg`` key → value.
        jobs: maximum number of concurrent tasks; 0 for as many as the resources allow.
        device: ``auto``, ``cpu``, ``cuda``, ``cuda:1``.
        num_workers: loading processes of a task; None for its share of the cores.
        several_nodes: a task may compute on several nodes at once (``nodes=2``).
    """

    name: str = "local"
    settings: Mapping[str, str] = field(default_factory=dict)
    jobs: int = 0
    device: str = "auto"
    num_workers: int | None = None
    several_nodes: bool = False

    @property
    def uses_gpus(self) -> bool:
        """Whether tasks compute on GPUs, if there are any."""
        return self.device.startswith(("auto", "cuda"))


@dataclass(eq=False)
class _Unit:
    """A task between ``submit`` and the end of its future."""

    task: Task
    priority: int
    number: int
    line: ProgressLine
    future: Future[Any] = field(default_factory=Future)
    outcome: Future[Outcome] | None = None  # while a worker runs it
    attempts: Counter[str] = field(default_factory=Counter)  # by reason of their end
    printed: int = 0  # bytes of its log


class Executor(ABC):
    """Runs units of work; a context manager.

    Leaving the block waits for all tasks; after an error it lets them save and stops them. A
    subclass implements ``_start`` and ``_stop`` and is registered in ``EXECUTORS``.

    Attributes:
        about: one line for ``list executors``.
        options: ``--executor-arg`` keys → descriptions; ``None`` accepts any key.
        several_nodes: tasks may run on other machines.
        slots: estimated number of concurrent tasks (one per GPU if there are GPUs).
        cpu_slots: estimated number of concurrent tasks of one core each without a GPU.
        has_gpus: whether a task can have a GPU.
        loaders: default number of loading processes of a task.
    """

    about: ClassVar[str] = ""
    options: ClassVar[Mapping[str, str] | None] = {}
    several_nodes: bool = False
    slots: int = 1
    cpu_slots: int = 1
    has_gpus: bool = False
    loaders: int = 2

    def __init__(self, spec: ExecutorSpec, bar: Bar) -> None:
        self.spec, self.bar = spec, bar
        self.closing = False
        self._open: set[_Unit] = set()  # submitted and not ended
        self._submitted: queue.SimpleQueue[_Unit | None] = queue.SimpleQueue()  # None: look again
        self._waiting: list[_Unit] = []
        self._running: list[_Unit] = []
        self._numbers = itertools.count()
        self.overview = Overview(bar)
        self._driver = threading.Thread(target=self._drive, name="driver", daemon=True)
        for key in spec.settings:
            if self.options is not None and key not in self.options:
                hint = nearest(key, self.options)
                raise UserError(f"--executor-arg {key}: {spec.name} has no such setting; {hint}")

    @abstractmethod
    def _start(self, task: Task) -> Future[Outcome] | None:
        """Run ``execute(task)`` in a worker, or return None if all resources are in use.

        A worker's death is ``WorkerLost``: raised here, by the future, or as the outcome.
        """

    @abstractmethod
    def _stop(self) -> None:
        """Ask the running tasks to save their state and end."""

    def release(self) -> None:  # noqa: B027
        """Release all resources; tasks that still run are killed."""

    def _poll(self) -> None:  # noqa: B027
        """Check on running tasks; called at least every ``POLL`` seconds."""

    def _set_capacity(self, cpus: int, gpus: int) -> None:
        """Set ``slots`` and the like for tasks that share ``cpus`` and ``gpus``."""
        self.has_gpus = gpus > 0
        jobs = self.spec.jobs or math.inf
        self.slots = int(min(jobs, gpus or max(1, cpus // threads_per_task())))
        self.cpu_slots = int(min(jobs, cpus))
        self.loaders = max(1, min(MAX_LOADERS, cpus // self.slots))

    @property
    def device(self) -> str:
        """The device as a task names it: it sees only its own GPU, so ``cuda`` for ``cuda:1``."""
        return self.spec.device.partition(":")[0]

    @property
    def num_workers(self) -> int:
        """Loading processes of a task; results do not depend on them."""
        return self.loaders if self.spec.num_workers is None else self.spec.num_workers

    def needs(self, kind: str) -> dict[str, Any]:
        """``cpus`` and ``gpus`` of a unit; its ``kind`` decides, never what else is running.

        On a GPU each loading process has a core of its own; on a CPU they share the unit's.
        """
        if kind == "render":
            return {"cpus": 1, "gpus": 0}
        if kind not in DEVICE_KINDS:
            raise ValueError(f"unknown kind of unit {kind!r}")
        if self.device.startswith("cuda") or (self.device == "auto" and self.has_gpus):
            return {"cpus": self.num_workers + 1, "gpus": 1}
        return {"cpus": threads_per_task(), "gpus": 0}

    def where(self, cpus: int, gpus: int) -> str:
        """Where a task with these needs runs, such as ``local, 1 GPU and 3 cores``."""
        gpu_text = f"{gpus} GPU and " if gpus else ""
        return f"{self.spec.name}, {gpu_text}{cpus} core{'s' * (cpus > 1)}"

    def submit(
        self,
        function: Callable[..., Any],
        *args: Any,
        cpus: int = 1,
        gpus: int = 0,
        name: str = "",
        priority: int = 0,
        kind: str = "",
    ) -> Future[Any]:
        """Run ``function(*args)`` in a worker.

        Args:
            function: module-level; it reports progress to
                ``benchmark.execution.progress.reporter()``.
            args: plain values (paths, names, settings).
            cpus: number of computing threads.
            gpus: number of GPUs that it sees.
            name: shown to the user.
            priority: the highest waiting task starts first.
            kind: counted in the overview.

        Returns:
            a future that raises the function's error, or ``WorkerLost`` if its worker died for the
            third time.
        """
        self.overview.add_submitted(kind)
        name = name or getattr(function, "__name__", "task")
        slug = re.sub(r"[^A-Za-z0-9.-]+", "-", name).strip("-")[:60]
        folder = home().absolute() / "tasks" / f"{slug}-{uuid.uuid4().hex[:10]}"
        return self._enqueue(Task(function, args, name, folder, max(1, cpus), gpus), priority)

    def _enqueue(self, task: Task, priority: int) -> Future[Any]:
        if self.several_nodes:
            task.folder.mkdir(parents=True)
            task = replace(task, software=software())
        unit = _Unit(task, priority, next(self._numbers), self.bar.line())
        self._open.add(unit)
        if self.closing:
            self._drop(unit)
        else:
            self._submitted.put(unit)
        return unit.future

    def check_store(self, uri: str) -> None:
        """Raise ``UserError`` for a database file that other machines would have to write to."""
        if self.several_nodes and uri.startswith("sqlite:"):
            raise UserError(
                f"--executor {self.spec.name} runs tasks on other machines, which cannot share the"
                f" file {uri}; start `mlflow server` and give --tracking-uri http://HOST:PORT"
            )

    async def run(self, kind: str, function: Callable[..., Any], *args: Any, **options: Any) -> Any:
        """``submit`` with the needs of ``kind``, awaited; ``options``: name and priority."""
        options = {**self.needs(kind), "kind": kind, **options}
        return await asyncio.wrap_future(self.submit(function, *args, **options))

    def __enter__(self) -> Self:
        tasks = home() / "tasks"
        tasks.mkdir(0o700, parents=True, exist_ok=True)  # arguments may contain passwords
        remove_abandoned(tasks)
        self._driver.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: object, trace: object) -> None:
        with ExitStack() as stack:  # in reverse order: save, kill, drop
            stack.callback(self._drop_all)
            stack.callback(self.release)
            stack.callback(self._close)
            while kind is None and self._open:
                time.sleep(0.02)

    def _close(self) -> None:
        """Start no more tasks; wait until running ones have saved their state."""
        self.closing = True
        self.overview.close()
        self._submitted.put(None)
        self._driver.join()

    def _drop_all(self) -> None:
        for unit in list(self._open):
            self._drop(unit)

    def _drive(self) -> None:
        """The driver thread: the only one that starts and follows tasks."""
        bug = None
        try:
            while not self.closing:
                self._step()
        except Exception as error:
            self.closing, bug = True, error
        deadline = time.monotonic() + SAVE_SECONDS
        for unit in self._running:
            with suppress(OSError):  # a full disk; the signal of ``_stop`` may still arrive
                unit.task.folder.mkdir(parents=True, exist_ok=True)
                unit.task.stop.touch()
        with suppress(Exception):
            self._stop()
        while self._is_busy() and time.monotonic() < deadline:
            with suppress(Exception):
                self._poll()
            time.sleep(0.05)
        if bug is not None:
            for unit in list(self._open):
                self._end(unit, error=bug)

    def _is_busy(self) -> bool:
        return any(unit.outcome is not None and not unit.outcome.done() for unit in self._running)

    def _step(self) -> None:
        timeout = POLL
        with suppress(queue.Empty):
            while True:
                if unit := self._submitted.get(timeout=timeout):
                    self._wait(unit)
                timeout = 0.0
        with suppress(OSError):
            self._poll()
        for unit in list(self._running):
            self._show(unit)
            if unit.outcome is not None and unit.outcome.done():
                self._running.remove(unit)
                self._finish(unit, unit.outcome)
        self._start_waiting()
        self.overview.tick([unit.line for unit in self._running])

    def _wait(self, unit: _Unit) -> None:
        bisect.insort(self._waiting, unit, key=lambda each: (-each.priority, each.number))

    def _start_waiting(self) -> None:
        """Start waiting tasks in order, those with GPUs and those without separately.

        A task that does not fit blocks those behind it; otherwise one that needs several cores or
        GPUs would never start.
        """
        blocked: set[bool] = set()
        for unit in list(self._waiting):
            with_gpus = unit.task.gpus > 0
            if unit.future.cancelled():
                self._waiting.remove(unit)
                self._drop(unit)
            elif with_gpus not in blocked and len(self._running) < (self.spec.jobs or math.inf):
                try:
                    unit.outcome = self._start(unit.task)
                except Exception as error:  # fails this task only
                    unit.outcome = Future()
                    unit.outcome.set_exception(error)
                if unit.outcome is None:
                    blocked.add(with_gpus)
                else:
                    self._waiting.remove(unit)
                    self._running.append(unit)
                    unit.outcome.add_done_callback(lambda _: self._submitted.put(None))

    def _finish(self, unit: _Unit, outcome: Future[Outcome]) -> None:
        """End a task whose worker has returned, or run it again."""
        try:
            return self._end(unit, outcome.result().result())
        except (WorkerLost, BrokenExecutor) as error:
            kind, limit = "its worker died", MAX_LOST
            reason = str(error) if isinstance(error, WorkerLost) else "perhaps out of memory"
        except KeyboardInterrupt:
            kind, limit, reason = "it was stopped", MAX_PREEMPTED, "its state is saved"
        except Exception as error:
            return self._end(unit, error=error)
        unit.attempts[kind] += 1
        count = unit.attempts[kind]
        if count > limit:
            return self._end(unit, error=WorkerLost(f"{kind} {count} times: {reason}"))
        self._show(unit, flush=True)
        unit.line.end()
        unit.line, unit.outcome = self.bar.line(), None
        again = f"{unit.task.name}: {kind} ({reason}); running it again, {count} of {limit}"
        console.print(again, style="yellow")
        return self._wait(unit)

    def _drop(self, unit: _Unit) -> None:
        unit.future.cancel()
        self._end(unit)

    def _end(self, unit: _Unit, value: Any = None, error: BaseException | None = None) -> None:
        """Show the rest of a task's output, remove its folder and end its future, once."""
        if unit not in self._open:
            return
        with suppress(Exception):  # the future must end in any case
            self._show(unit, flush=True)
        unit.line.end()
        self.overview.add_done()
        remove(unit.task.folder)
        if unit.future.set_running_or_notify_cancel():
            if error is not None:
                unit.future.set_exception(error)
            else:
                unit.future.set_result(value)
        self._open.discard(unit)

    def _show(self, unit: _Unit, flush: bool = False) -> None:
        """Print the new lines of a task's output, on ``flush`` all of it, and draw its progress."""
        with suppress(OSError):
            if unit.task.log.is_file():
                with unit.task.log.open("rb") as log:
                    log.seek(unit.printed)
                    output = log.read()
                output = output if flush else output[: output.rfind(b"\n") + 1]
                unit.printed += len(output)
                if output:
                    console.print(output.decode("utf-8", errors="replace"), end="")
            unit.line.follow(read(unit.task.status))


def positive(key: str, text: str, minimum: int = 1) -> int:
    """The integer value of an ``--executor-arg``. Raises ``UserError`` if below ``minimum``."""
    if not text.isdecimal() or int(text) < minimum:
        raise UserError(f"--executor-arg {key}={text}: give an integer, {minimum} or more")
    return int(text)


EXECUTORS: Registry[type[Executor]] = Registry(
    "executor", "executors", instance_of(Executor, None, subclass=True)
)
