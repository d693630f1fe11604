"""Who runs a unit of work: one interface for this machine's processes, SLURM and Ray.

An executor takes functions of modules with plain arguments and gives ``concurrent.futures.Future``.
What all of them share is
here: tasks wait for room by priority, a worker that vanishes is replaced at most twice, progress
and words of a task are seen by the caller, and an interruption lets tasks save what they have.
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
from collections.abc import Callable, Mapping
from concurrent.futures import BrokenExecutor, Future
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Self

from benchmark.execution.overview import Overview
from benchmark.execution.progress import Bar, ProgressLine, console
from benchmark.execution.task import Outcome, Task, remove, software, sweep, threads_of_a_task
from common.errors import UserError, nearest
from common.files import home, report_unwritable
from common.registry import Registry, instance_of
from reports.mlflow.heartbeat import read

LOSSES = 2  # times that a unit whose worker vanished is run again
PREEMPTIONS = 20  # times that a unit which was asked to stop, and saved what it had, is run again
POLL = 0.5  # seconds between looks at what tasks say
PATIENCE = 90.0  # seconds that interrupted tasks have for saving what they have
ON_DEVICE = (
    "train",
    "probe",
    "label",
    "expert",
)  # kinds of units that compute on a GPU where there is one
MOST_LOADERS = 16  # loading processes of a task, where the user does not say how many


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
        num_workers: loading processes of a task; None: the cores that fall to it.
        several_nodes: a task may compute on several nodes at once (``nodes=2``).
    """

    name: str = "local"
    settings: Mapping[str, str] = field(default_factory=dict)
    jobs: int = 0
    device: str = "auto"
    num_workers: int | None = None
    several_nodes: bool = False

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
    line: ProgressLine
    future: Future[Any] = field(default_factory=Future)
    inner: Future[Outcome] | None = None  # its worker's, while it runs
    losses: int = 0
    preemptions: int = 0
    shown: int = 0  # bytes of its log that the caller has seen


class Executor(ABC):
    """Runs units of work; a context manager, whose end waits for them (or, after an error, lets
    them save and stops them).

    A subclass says where and how (``_start``); it is registered in ``EXECUTORS`` under its name.

    Attributes:
        about: one line for ``list executors``.
        options: ``--executor-arg`` keys → what they do; ``None`` admits any.
        several_nodes: tasks may run on other machines than this one.
        width: how many tasks can run at once, as far as is known, each on a GPU where there are
            some; ``cpus``: how many of one
            core each that need none: hints for cutting work into pieces.
        has_gpus: whether a task can have a GPU.
        loaders: loading processes of a task, where the user does not say how many.
    """

    about: ClassVar[str] = ""
    options: ClassVar[Mapping[str, str] | None] = {}
    several_nodes: bool = False
    width: int = 1
    cpus: int = 1
    has_gpus: bool = False
    loaders: int = 2

    def __init__(self, spec: ExecutorSpec, bar: Bar) -> None:
        self.spec, self.bar = spec, bar
        self.closing = False
        self._open: set[_Unit] = set()  # submitted, and not at their end
        self._news: queue.SimpleQueue[_Unit | None] = (
            queue.SimpleQueue()
        )  # what is submitted, or a reason to look
        self._waiting: list[_Unit] = []
        self._running: list[_Unit] = []
        self._numbers = itertools.count()
        self.overview = Overview(bar)
        self._driver = threading.Thread(target=self._drive, name="driver", daemon=True)
        wrong = [
            key for key in spec.settings if self.options is not None and key not in self.options
        ]
        if wrong:
            hint = nearest(wrong[0], self.options or ())
            raise UserError(f"--executor-arg {wrong[0]}: {spec.name} has no such setting; {hint}")

    @abstractmethod
    def _start(self, task: Task) -> Future[Outcome] | None:
        """Run ``execute(task)`` in a worker, or None while there is no room for it.

        ``WorkerLost``, raised here or by the future or as the outcome, says that the worker
        vanished.
        """

    @abstractmethod
    def _stop(self) -> None:
        """Ask the running tasks to save what they have and end."""

    def release(self) -> None:  # noqa: B027
        """Let go of what the executor holds; whatever still runs is ended at once."""

    def _look(self) -> None:  # noqa: B027
        """Called at least every ``POLL`` seconds: for an engine that has to be asked how its tasks
        are."""

    def _has_room(self, cpus: int, gpus: int) -> None:
        """Settle ``width`` and its like where tasks have so many cores and GPUs altogether."""
        self.has_gpus = gpus > 0
        room = gpus or max(1, cpus // threads_of_a_task())
        self.width = min(room, self.spec.jobs or room)
        self.cpus = min(cpus, self.spec.jobs or cpus)
        self.loaders = max(1, min(MOST_LOADERS, cpus // self.width))

    @property
    def device(self) -> str:
        """The device as a task names it: ``cuda:1`` of this machine is the only one that its task
        sees."""
        return self.spec.device.partition(":")[0]

    @property
    def num_workers(self) -> int:
        """Loading processes of a task: they never change a result."""
        return self.loaders if self.spec.num_workers is None else self.spec.num_workers

    def needs(self, kind: str) -> dict[str, Any]:
        """``cpus`` and ``gpus`` of a unit of work, as ``submit`` takes them: fixed by its ``kind``
        and never by who else runs.

        What is in ``ON_DEVICE`` computes on a GPU where there is one; each of its loading processes
        then has a core beside its own. On a CPU they share the unit's.
        """
        if kind not in (*ON_DEVICE, "render"):
            raise ValueError(f"no kind of unit {kind!r}")
        if kind == "render":
            return {"cpus": 1, "gpus": 0}
        if self.device.startswith("cuda") or (self.device == "auto" and self.has_gpus):
            return {"cpus": self.num_workers + 1, "gpus": 1}
        return {"cpus": threads_of_a_task(), "gpus": 0}

    def where(self, cpus: int, gpus: int) -> str:
        """Where a task with these needs would run, for people."""
        return (
            f"{self.spec.name}, {f'{gpus} GPU and ' if gpus else ''}{cpus} core{'s' * (cpus > 1)}"
        )

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
            function: of a module; args: plain values (paths, names, settings). It reports its
                progress to ``benchmark.execution.progress.reporter()``.
            cpus: threads that it computes with; gpus: how many GPUs it sees.
            name: for people; kind: what it counts as.
            priority: among tasks that wait for room here, the higher one goes first.

        Returns:
            a future of its result. It raises what the function raises, and ``WorkerLost`` when its
            worker vanished for the third time.
        """
        self.overview.submitted(kind)
        name = name or getattr(function, "__name__", "task")
        slug = re.sub(r"[^A-Za-z0-9.-]+", "-", name).strip("-")[:60]
        folder = home().absolute() / "tasks" / f"{slug}-{uuid.uuid4().hex[:10]}"
        return self._take(Task(function, args, name, folder, max(1, cpus), gpus), priority)

    def _take(self, task: Task, priority: int) -> Future[Any]:
        """Let a task wait for room."""
        if self.several_nodes:
            task.folder.mkdir(parents=True)
            task = replace(task, software=software())
        unit = _Unit(task, priority, next(self._numbers), self.bar.line())
        self._open.add(unit)
        if self.closing:
            self._drop(unit)
        else:
            self._news.put(unit)
        return unit.future

    def check_store(self, uri: str) -> None:
        """Raises ``UserError`` for a database file that tasks on other nodes would write to."""
        if self.several_nodes and uri.startswith("sqlite:"):
            raise UserError(
                f"--executor {self.spec.name} runs tasks on other machines, which cannot share the"
                f" file {uri}; start `mlflow server` and give --tracking-uri http://HOST:PORT"
            )

    async def run(self, kind: str, function: Callable[..., Any], *args: Any, **told: Any) -> Any:
        """``submit``, awaited, with the needs of its ``kind``; ``told`` is its name and
        priority."""
        needs: dict[str, Any] = {**self.needs(kind), "kind": kind, **told}
        return await asyncio.wrap_future(self.submit(function, *args, **needs))

    def __enter__(self) -> Self:
        tasks = home() / "tasks"
        with report_unwritable(tasks):
            tasks.mkdir(
                0o700, parents=True, exist_ok=True
            )  # arguments may hold the password of a storage
        sweep(tasks)
        self._driver.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: object, trace: object) -> None:
        with (
            ExitStack() as stack
        ):  # the last first, whatever breaks: what runs may save, is ended, and is dropped
            stack.callback(self._drop_all)
            stack.callback(self.release)
            stack.callback(self._close)
            while kind is None and self._open:
                time.sleep(0.02)

    def _close(self) -> None:
        """Start nothing more; what runs is asked to save what it has, and waited for."""
        self.closing = True
        self.overview.close()
        self._news.put(None)
        self._driver.join()

    def _drop_all(self) -> None:
        for unit in list(self._open):
            self._drop(unit)

    def _drive(self) -> None:
        """Start, follow and end tasks, until the executor is left: all that is known of them is
        this thread's."""
        end, mistake = math.inf, None
        while not self.closing or (self._is_busy() and time.monotonic() < end):
            try:
                self._look() if mistake else self._step()
            except Exception as error:
                self.closing, mistake = True, mistake or error
            if self.closing and end == math.inf:
                end = time.monotonic() + PATIENCE
                with suppress(Exception):
                    for unit in self._running:
                        unit.task.folder.mkdir(parents=True, exist_ok=True)
                        unit.task.stop.touch()
                    self._stop()
            time.sleep(POLL if mistake else 0)
        for unit in list(self._open) if mistake else ():  # nobody else may learn how they end
            self._end(unit, error=mistake)

    def _is_busy(self) -> bool:
        return any(unit.inner is not None and not unit.inner.done() for unit in self._running)

    def _step(self) -> None:
        wait = POLL
        with suppress(queue.Empty):
            while True:
                if unit := self._news.get(timeout=wait):
                    self._wait_for_room(unit)
                wait = 0.0
        with suppress(OSError):
            self._look()
        for unit in list(self._running):
            self._show(unit)
            if unit.inner is not None and unit.inner.done():
                self._running.remove(unit)
                self._arrived(unit, unit.inner)
        self._start_waiting()
        self.overview.tick([unit.line for unit in self._running])

    def _wait_for_room(self, unit: _Unit) -> None:
        bisect.insort(self._waiting, unit, key=lambda each: (-each.priority, each.number))

    def _start_waiting(self) -> None:
        """Start what there is room for. One that finds no room keeps those behind it back that want
        the same, cores or GPUs: else a task that needs several would never have its turn."""
        full: set[bool] = set()
        for unit in list(self._waiting):
            on_gpus = unit.task.gpus > 0
            if self.closing or unit.future.cancelled():
                self._waiting.remove(unit)
                self._drop(unit)
            elif on_gpus not in full and len(self._running) < (self.spec.jobs or math.inf):
                try:
                    unit.inner = self._start(unit.task)
                except Exception as error:  # the task's own
                    unit.inner = Future()
                    unit.inner.set_exception(error)
                if unit.inner is None:
                    full.add(on_gpus)
                else:
                    self._waiting.remove(unit)
                    self._running.append(unit)
                    unit.inner.add_done_callback(lambda _: self._news.put(None))

    def _arrived(self, unit: _Unit, inner: Future[Outcome]) -> None:
        """A worker is done with a task, or gone: the task ends, or is run again."""
        try:
            value = inner.result().result()
        except (WorkerLost, BrokenExecutor) as lost:
            unit.losses += 1
            why = (
                lost
                if isinstance(lost, WorkerLost)
                else "its process died, perhaps for want of memory"
            )
            told = (
                f"the worker of {unit.task.name} vanished ({why}); it is run again, {unit.losses}"
                f" of {LOSSES}"
            )
            last = unit.losses > LOSSES and WorkerLost(
                f"its worker vanished {unit.losses} times: {why}"
            )
        except KeyboardInterrupt:
            unit.preemptions += 1
            told = f"{unit.task.name} was asked to stop and saved what it had; it is run again"
            last = unit.preemptions > PREEMPTIONS and WorkerLost(
                f"it was asked to stop {unit.preemptions} times"
            )
        except Exception as error:
            return self._end(unit, error=error)
        else:
            return self._end(unit, value)
        if self.closing:
            return self._drop(unit)
        if last:
            return self._end(unit, error=last)
        self._show(unit, whole=True)
        unit.line.end()
        unit.line, unit.inner = self.bar.line(), None
        with suppress(OSError):
            console.print(told, style="yellow", markup=False)
        return self._wait_for_room(unit)

    def _drop(self, unit: _Unit) -> None:
        unit.future.cancel()
        self._end(unit)

    def _end(self, unit: _Unit, value: Any = None, error: BaseException | None = None) -> None:
        """The last words of a task are shown, its folder goes, and its future ends; only the first
        end counts."""
        if unit not in self._open:
            return
        with suppress(Exception):  # whoever waits for it must hear that it ended
            self._show(unit, whole=True)
        unit.line.end()
        self.overview.ended()
        remove(unit.task.folder)
        if unit.future.set_running_or_notify_cancel():
            if error is not None:
                unit.future.set_exception(error)
            else:
                unit.future.set_result(value)
        self._open.discard(unit)

    def _show(self, unit: _Unit, whole: bool = False) -> None:
        """Print what a task has said since the last time, in full lines unless ``whole``, and draw
        how far it is."""
        with suppress(OSError):
            if unit.task.log.is_file():
                with unit.task.log.open("rb") as log:
                    log.seek(unit.shown)
                    said = log.read()
                said = said if whole else said[: said.rfind(b"\n") + 1]
                unit.shown += len(said)
                if said:
                    console.print(
                        said.decode("utf-8", errors="replace"), markup=False, emoji=False, end=""
                    )
            unit.line.follow(read(unit.task.status))


def positive(key: str, text: str, least: int = 1) -> int:
    """The whole number of an ``--executor-arg``."""
    if not (text.isascii() and text.isdigit() and len(text) < 10 and int(text) >= least):
        raise UserError(f"--executor-arg {key}={text}: give a whole number, {least} or more")
    return int(text)


EXECUTORS: Registry[type[Executor]] = Registry(
    "executor", "executors", instance_of(Executor, None, subclass=True)
)
