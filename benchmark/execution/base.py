"""Who runs a unit of work: one interface for this machine's processes, SLURM and Ray.

An executor takes functions of modules with plain arguments and gives ``concurrent.futures.Future``. What all of them share is
here: a worker that vanishes is replaced at most twice, progress and words of a task are seen by the caller, and an interruption
lets tasks save what they have.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import re
import shutil
import threading
import time
import uuid
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Self

from backbones.errors import UserError, nearest
from backbones.files import home
from backbones.plugins import Registry
from benchmark.execution.progress import Bar, Lane, console
from benchmark.execution.task import Outcome, Task
from reports.heartbeat import read

LOSSES = 2  # times that a unit whose worker vanished is run again
PREEMPTIONS = 20  # times that a unit which was asked to stop, and saved what it had, is run again
POLL = 0.5  # seconds between looks at what tasks say


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
    """

    name: str = "local"
    settings: Mapping[str, str] = field(default_factory=dict)
    jobs: int = 0
    device: str = "auto"


class Executor(ABC):
    """Runs units of work; a context manager, whose end waits for its workers.

    A subclass says where and how (``_start``); it is registered in ``EXECUTORS`` under its name.

    Attributes:
        about: one line for ``list executors``.
        options: ``--executor-arg`` keys → what they do; ``None`` admits any.
        several_nodes: tasks may run on other machines than this one.
        width: how many tasks can run at once, as far as is known: a hint for cutting work into pieces.
        has_gpus: whether a task can have a GPU.
    """

    about: ClassVar[str] = ""
    options: ClassVar[Mapping[str, str] | None] = {}
    several_nodes: bool = False
    width: int = 1
    has_gpus: bool = False

    def __init__(self, spec: ExecutorSpec, bar: Bar) -> None:
        self.spec, self.bar = spec, bar
        self.closing = False
        self._running: dict[str, tuple[Task, int, Lane | None]] = {}  # id → task, bytes of its log that were shown, lane
        self._lock = threading.RLock()
        self._numbers = itertools.count()
        self._over = threading.Event()
        self._follower = threading.Thread(target=self._follow, name="progress", daemon=True)
        for key in spec.settings if self.options is not None else ():
            if key not in (self.options or {}):
                raise UserError(f"--executor-arg {key}: {spec.name} has no such setting; {nearest(key, self.options or ())}")

    @abstractmethod
    def _start(self, task: Task, priority: int) -> Future[Outcome]:
        """Run ``execute(task)`` in a worker; the future raises ``WorkerLost`` when the worker vanished."""

    @abstractmethod
    def _stop(self) -> None:
        """Ask the running tasks to save what they have and end, and wait for them."""

    def _release(self) -> None:
        """Let go of what the executor holds, after its tasks have ended."""

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
        folder = home() / "tasks" / f"{slug}-{uuid.uuid4().hex[:10]}"
        task = Task(function, args, name, folder, max(1, cpus), gpus)
        outer: Future[Any] = Future()
        self._attempt(task, priority, outer, losses=0, preemptions=0)
        return outer

    def _attempt(self, task: Task, priority: int, outer: Future[Any], losses: int, preemptions: int) -> None:
        if outer.cancelled():
            return
        with self._lock:
            self._running[task.folder.name] = (task, 0, None)
        inner = self._start(task, priority)

        def ended(future: Future[Outcome]) -> None:
            try:
                if future.cancelled():
                    outer.cancel()
                    return
                outcome = future.result()
                if outcome.kind == "interrupted":
                    if self.closing:
                        outer.cancel()
                    elif preemptions < PREEMPTIONS:
                        self._say(f"{task.name} was asked to stop and saved what it had; it is run again")
                        self._attempt(task, priority, outer, losses, preemptions + 1)
                    else:
                        raise WorkerLost(f"it was asked to stop {preemptions + 1} times")
                    return
                value = outcome.result()
            except WorkerLost as lost:
                if self.closing:
                    outer.cancel()
                elif losses < LOSSES:
                    self._say(f"the worker of {task.name} vanished ({lost}); it is run again, {losses + 1} of {LOSSES}")
                    self._attempt(task, priority, outer, losses + 1, preemptions)
                    return
                else:
                    _settle(outer, error=WorkerLost(f"its worker vanished {LOSSES + 1} times: {lost}"))
                self._forget(task)
            except BaseException as error:
                self._forget(task)
                _settle(outer, error=error)
            else:
                self._forget(task)
                _settle(outer, value)

        inner.add_done_callback(ended)

    async def run(self, function: Callable[..., Any], *args: Any, **needs: Any) -> Any:
        """``submit``, awaited."""
        return await asyncio.wrap_future(self.submit(function, *args, **needs))

    def __enter__(self) -> Self:
        self._follower.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: object, trace: object) -> None:
        self.closing = kind is not None
        try:
            if kind is not None:
                self._stop()
        finally:
            self._release()
            self._over.set()
            self._follower.join()
            for task, *_ in list(self._running.values()):
                self._forget(task)

    def _say(self, line: str) -> None:
        console.print(line, style="yellow", markup=False)

    def _forget(self, task: Task) -> None:
        """The task is over: its last words, and its folder goes."""
        self._show(task.folder.name)
        with self._lock:
            found = self._running.pop(task.folder.name, None)
        if found and found[2]:
            found[2].end()
        shutil.rmtree(task.folder, ignore_errors=True)

    def _follow(self) -> None:
        """Show what tasks say and how far they are, until the executor ends."""
        while not self._over.wait(POLL):
            for name in list(self._running):
                with suppress(OSError):
                    self._show(name)

    def _show(self, name: str) -> None:
        with self._lock:
            if name not in self._running:
                return
            task, shown, lane = self._running[name]
            if task.log.is_file():
                with task.log.open("rb") as log:
                    log.seek(shown)
                    said = log.read()
                if said:
                    console.print(said.decode("utf-8", errors="replace"), markup=False, end="")
                shown += len(said)
            status = read(task.status)
            if "step" in status and lane is None:
                lane = self.bar.lane()
            if lane is not None:
                lane.follow(status)
            self._running[name] = (task, shown, lane)


def _settle(future: Future[Any], value: Any = None, error: BaseException | None = None) -> None:
    """Give a future its end, unless somebody cancelled it."""
    if not future.set_running_or_notify_cancel():
        return
    if error is not None:
        future.set_exception(error)
    else:
        future.set_result(value)


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


def task_home() -> Path:
    """Where tasks have their folders; those of drivers that were killed more than a day ago are removed."""
    root = home() / "tasks"
    for folder in root.glob("*") if root.is_dir() else ():
        with suppress(OSError):
            if folder.stat().st_mtime < time.time() - 86400 and not (folder / "status.json").exists():
                shutil.rmtree(folder, ignore_errors=True)
    return root


EXECUTORS: Registry[type[Executor]] = Registry("executor", "executors")
