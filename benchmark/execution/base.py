"""Who runs a unit of work: one interface for this machine's processes, SLURM and Ray.

An executor takes functions of modules with plain arguments and gives ``concurrent.futures.Future``. What all of them share is
here: tasks wait for room by priority, a worker that vanishes is replaced at most twice, progress and words of a task are seen by
the caller, and an interruption lets tasks save what they have.
"""

from __future__ import annotations

import asyncio
import bisect
import functools
import itertools
import math
import os
import re
import shutil
import threading
import time
import uuid
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar, Self

from backbones.errors import UserError, nearest
from backbones.files import home, writing
from backbones.plugins import Registry, of_type
from benchmark.execution.progress import Bar, Lane, console
from benchmark.execution.task import Outcome, Task, software
from reports.heartbeat import read

LOSSES = 2  # times that a unit whose worker vanished is run again
PREEMPTIONS = 20  # times that a unit which was asked to stop, and saved what it had, is run again
POLL = 0.5  # seconds between looks at what tasks say
ABANDONED = 30 * 86400.0  # seconds without a sign of life after which a task's folder is nobody's


class WorkerLost(RuntimeError):
    """The worker of a task vanished: killed, out of memory, its node gone."""


@dataclass(frozen=True)
class ExecutorSpec:
    """Which executor, as a user says it.

    Attributes:
        name: ``local``, ``slurm``, ``ray``, or one that another package brings.
        settings: ``--executor-arg`` key → value.
        jobs: most tasks at once; 0 for as many as there is room for.
        device: ``auto``, ``cpu``, ``cuda``, ``cuda:1``.
        several_nodes: a task may compute on several nodes at once (``nodes=2``).
    """

    name: str = "local"
    settings: Mapping[str, str] = field(default_factory=dict)
    jobs: int = 0
    device: str = "auto"
    several_nodes: bool = False

    @property
    def task_device(self) -> str:
        """The device as a task names it: ``cuda:1`` of this machine is the only one that its task sees."""
        return self.device.partition(":")[0]

    @property
    def on_gpus(self) -> bool:
        """Whether tasks compute on GPUs, where there are some."""
        return self.device.startswith(("auto", "cuda"))


@dataclass(eq=False)
class _Unit:
    """A task between ``submit`` and the end of its future."""

    task: Task
    priority: int
    number: int
    future: Future[Any] = field(default_factory=Future)
    losses: int = 0
    preemptions: int = 0
    shown: int = 0  # bytes of its log that the caller has seen
    lane: Lane | None = None
    over: bool = False

    def clear_lane(self) -> None:
        if self.lane is not None:
            self.lane.end()
            self.lane = None


class Executor(ABC):
    """Runs units of work; a context manager, whose end waits for them (or, after an error, lets them save and stops them).

    A subclass says where and how (``_start``); it is registered in ``EXECUTORS`` under its name.

    Attributes:
        about: one line for ``list executors``.
        options: ``--executor-arg`` keys → what they do; ``None`` admits any.
        several_nodes: tasks may run on other machines than this one.
        width: how many tasks can run at once, as far as is known, each on a GPU where there are some; ``cpus``: how many of one
            core each that need none: hints for cutting work into pieces.
        has_gpus: whether a task can have a GPU.
    """

    about: ClassVar[str] = ""
    options: ClassVar[Mapping[str, str] | None] = {}
    several_nodes: bool = False
    width: int = 1
    cpus: int = 1
    has_gpus: bool = False

    def __init__(self, spec: ExecutorSpec, bar: Bar) -> None:
        self.spec, self.bar = spec, bar
        self.closing = False
        self._waiting: list[_Unit] = []
        self._running: list[_Unit] = []
        self._folders: list[Path] = []  # of tasks that ended before their workers did
        self._lock = threading.RLock()
        self._changed = threading.Condition(self._lock)
        self._numbers = itertools.count()
        self._over = threading.Event()
        self._follower = threading.Thread(target=self._follow, name="progress", daemon=True)
        wrong = [key for key in spec.settings if self.options is not None and key not in self.options]
        if wrong:
            hint = nearest(wrong[0], self.options or ())
            raise UserError(f"--executor-arg {wrong[0]}: {spec.name} has no such setting; {hint}")

    @abstractmethod
    def _start(self, task: Task) -> Future[Outcome] | None:
        """Run ``execute(task)`` in a worker, or None while there is no room for it.

        ``WorkerLost``, raised here or by the future or as the outcome, says that the worker vanished. Whoever ends the future
        holds no lock of his own.
        """

    @abstractmethod
    def _stop(self) -> None:
        """Ask the running tasks to save what they have and end, and wait for them."""

    def release(self) -> None:  # noqa: B027
        """Let go of what the executor holds; whatever still runs is ended at once."""

    def _look(self) -> None:  # noqa: B027
        """Called every ``POLL`` seconds: for an engine that has to be asked how its tasks are."""

    def where(self, cpus: int, gpus: int) -> str:
        """Where a task with these needs would run, for people."""
        return f"{self.spec.name}: {gpus} GPU" if gpus else f"{self.spec.name}: {cpus} core{'s' * (cpus > 1)}"

    def submit(
        self, function: Callable[..., Any], *args: Any, cpus: int = 1, gpus: int = 0, name: str = "", priority: int = 0
    ) -> Future[Any]:
        """Run ``function(*args)`` in a worker.

        Args:
            function: of a module; args: plain values (paths, names, settings). It reports its progress to
                ``benchmark.execution.progress.reporter()``.
            cpus: threads that it computes with; gpus: how many GPUs it sees.
            name: for people.
            priority: among tasks that wait for room here, the higher one goes first.

        Returns:
            a future of its result. It raises what the function raises, and ``WorkerLost`` when its worker vanished for the
            third time.
        """
        name = name or getattr(function, "__name__", "task")
        slug = re.sub(r"[^A-Za-z0-9.-]+", "-", name).strip("-")[:60]
        folder = home().absolute() / "tasks" / f"{slug}-{uuid.uuid4().hex[:10]}"
        task = Task(function, args, name, folder, max(1, cpus), gpus)
        if self.several_nodes:
            folder.mkdir(parents=True)
            task = replace(task, software=software())
        unit = _Unit(task, priority, next(self._numbers))
        self._queue(unit)
        return unit.future

    def check_store(self, uri: str) -> None:
        """Raises ``UserError`` for a database file that tasks on other nodes would write to."""
        if self.several_nodes and uri.startswith("sqlite:"):
            raise UserError(
                f"--executor {self.spec.name} runs tasks on other machines, which cannot share the file {uri}; start `mlflow "
                "server` and give --tracking-uri http://HOST:PORT"
            )

    async def run(self, function: Callable[..., Any], *args: Any, **needs: Any) -> Any:
        """``submit``, awaited."""
        return await asyncio.wrap_future(self.submit(function, *args, **needs))

    def __enter__(self) -> Self:
        tasks = home() / "tasks"
        with writing(tasks):
            tasks.mkdir(0o700, parents=True, exist_ok=True)  # arguments may hold the password of a storage
        _sweep(tasks)
        self._follower.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: object, trace: object) -> None:
        try:
            if kind is not None:
                self._abandon()
            else:
                try:
                    with self._changed:
                        while self._waiting or self._running:
                            self._changed.wait(POLL)
                except BaseException:
                    self._abandon()
                    raise
        finally:
            self.closing = True
            try:
                self.release()
            finally:
                self._over.set()
                self._follower.join()
                self._drop([*self._waiting, *self._running])
                for folder in self._folders:  # a worker may have written there after its task was given up
                    shutil.rmtree(folder, ignore_errors=True)

    def _abandon(self) -> None:
        """Start nothing more, and stop what runs."""
        self.closing = True  # without the lock: whoever holds it may be about to start many
        with self._lock:
            waiting, self._waiting = self._waiting, []
        self._drop(waiting)
        self._stop()

    def _drop(self, units: Iterable[_Unit]) -> None:
        for unit in units:
            unit.future.cancel()
            self._end(unit)

    def _queue(self, unit: _Unit) -> None:
        """Let a unit that does not run wait for room, or end it where nothing is started any more."""
        with self._lock:
            if unit in self._running:
                self._running.remove(unit)
            closing = self.closing
            if not closing:
                bisect.insort(self._waiting, unit, key=lambda each: (-each.priority, each.number))
        if closing:
            self._drop([unit])
        else:
            self._dispatch()

    def _dispatch(self) -> None:
        """Start what there is room for. One that finds no room keeps those behind it back that want the same, cores or GPUs:
        else a task that needs several would never have its turn."""
        started: list[tuple[_Unit, Future[Outcome]]] = []
        cancelled: list[_Unit] = []
        with self._lock:
            full: set[bool] = set()
            for unit in list(self._waiting):
                on_gpus = unit.task.gpus > 0
                if self.closing or len(self._running) >= (self.spec.jobs or math.inf):
                    break
                if unit.future.cancelled():
                    self._waiting.remove(unit)
                    cancelled.append(unit)
                    continue
                inner = None if on_gpus in full else self._started(unit.task)
                if inner is None:
                    full.add(on_gpus)
                else:
                    self._waiting.remove(unit)
                    self._running.append(unit)
                    started.append((unit, inner))
        for unit, inner in started:  # outside the lock: the callers' own callbacks may run now
            inner.add_done_callback(functools.partial(self._arrived, unit))
        self._drop(cancelled)

    def _started(self, task: Task) -> Future[Outcome] | None:
        """``_start``, whose errors are the task's."""
        try:
            return self._start(task)
        except Exception as error:
            refused: Future[Outcome] = Future()
            refused.set_exception(error)
            return refused

    def _arrived(self, unit: _Unit, inner: Future[Outcome]) -> None:
        """A worker is done with a task, or gone: the task ends, or is run again."""
        try:
            value = inner.result().result()
        except WorkerLost as lost:
            unit.losses += 1
            told = f"the worker of {unit.task.name} vanished ({lost}); it is run again, {unit.losses} of {LOSSES}"
            last = unit.losses > LOSSES and WorkerLost(f"its worker vanished {unit.losses} times: {lost}")
        except KeyboardInterrupt:
            unit.preemptions += 1
            told = f"{unit.task.name} was asked to stop and saved what it had; it is run again"
            last = unit.preemptions > PREEMPTIONS and WorkerLost(f"it was asked to stop {unit.preemptions} times")
        except Exception as error:
            return self._end(unit, error=error)
        else:
            return self._end(unit, value)
        if last and not self.closing:
            return self._end(unit, error=last)
        self._show(unit, whole=True)
        with suppress(OSError):
            if not self.closing:
                console.print(told, style="yellow", markup=False)
        with self._lock:
            unit.clear_lane()
        return self._queue(unit)

    def _end(self, unit: _Unit, value: Any = None, error: BaseException | None = None) -> None:
        """The last words of a task are shown, its folder goes, and its future ends; only the first end counts."""
        with suppress(Exception):  # whoever waits for it must hear that it ended
            self._show(unit, whole=True)
        with self._lock:
            if unit.over:
                return
            unit.over = True
            unit.clear_lane()
        shutil.rmtree(unit.task.folder, ignore_errors=True)
        if unit.future.set_running_or_notify_cancel():
            if error is not None:
                unit.future.set_exception(error)
            else:
                unit.future.set_result(value)
        with self._lock:
            for units in (self._waiting, self._running):
                if unit in units:
                    units.remove(unit)
            self._changed.notify_all()
        self._dispatch()

    def _follow(self) -> None:
        """Show what tasks say and how far they are, until the executor ends. What breaks here is every task's error: nobody
        else may learn how they end."""
        while not self._over.wait(POLL):
            try:
                with suppress(OSError):
                    self._look()
                for unit in list(self._running):
                    self._show(unit)
            except Exception as error:
                with self._lock:
                    self.closing = True
                    units = [*self._waiting, *self._running]
                    self._folders = [unit.task.folder for unit in units]
                for unit in units:
                    self._end(unit, error=error)
                with suppress(Exception):
                    self._stop()
                return

    def _show(self, unit: _Unit, whole: bool = False) -> None:
        """Print what a task has said since the last time, in full lines unless ``whole``, and draw how far it is."""
        with self._lock, suppress(OSError):
            if unit.over:
                return
            if unit.task.log.is_file():
                with unit.task.log.open("rb") as log:
                    log.seek(unit.shown)
                    said = log.read()
                said = said if whole else said[: said.rfind(b"\n") + 1]
                unit.shown += len(said)
                if said:
                    console.print(said.decode("utf-8", errors="replace"), markup=False, emoji=False, end="")
            status = read(unit.task.status)
            if "step" in status:
                unit.lane = unit.lane or self.bar.lane()
                unit.lane.follow(status)


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def threads_of_a_task() -> int:
    """Threads that a unit computes with on a CPU: a quarter of this machine's cores, 1 to 8, and at most ``OMP_NUM_THREADS``.

    It does not depend on how many tasks there are or run: the last bits of sums do depend on it, and a number must not depend on
    who else is at work.
    """
    share = max(1, min(8, cores() // 4))
    asked = os.environ.get("OMP_NUM_THREADS", "")
    return min(share, int(asked)) if asked.isdigit() and int(asked) > 0 else share


def positive(key: str, text: str, least: int = 1) -> int:
    """The whole number of an ``--executor-arg``."""
    if not (text.isascii() and text.isdigit() and int(text) >= least):
        raise UserError(f"--executor-arg {key}={text}: give a whole number, {least} or more")
    return int(text)


def _sweep(root: Path) -> None:
    """Remove the folders of tasks whose driver was killed long ago: their workers have shown no sign of life since."""
    for folder in root.glob("*"):
        with suppress(OSError):
            if max(path.stat().st_mtime for path in (folder, *folder.iterdir())) < time.time() - ABANDONED:
                shutil.rmtree(folder, ignore_errors=True)


EXECUTORS: Registry[type[Executor]] = Registry("executor", "executors", of_type(Executor, None, subclass=True))
