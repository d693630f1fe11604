"""This machine: a process for each GPU, or for each share of the cores, from the standard library's pool."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress
from typing import Any

from backbones.errors import UserError
from benchmark.execution.base import EXECUTORS, Executor, ExecutorSpec, WorkerLost, cores, threads_of_a_task
from benchmark.execution.progress import Bar, reporting
from benchmark.execution.task import THREADS, Outcome, Task, execute, threads

PATIENCE = 60.0  # seconds that an interrupted task has for saving what it has


class LocalExecutor(Executor):
    """Tasks in processes of this machine, each seeing only its own GPUs; where there is room for one at a time (``--jobs 1``),
    in this process, for debuggers.

    A process is kept for the next task, so that it imports its libraries once.
    """

    about = "processes of this machine, one for each GPU or share of the cores (default)"
    options = {"gpus": "which GPUs, such as 0,1,2 (default: all)", "cpus": "how many cores (default: all)"}

    def __init__(self, spec: ExecutorSpec, bar: Bar) -> None:
        super().__init__(spec, bar)
        self._gpus = _gpus(spec)
        self._cpus = _positive("cpus", spec.settings.get("cpus", str(cores())))
        self.has_gpus = bool(self._gpus)
        room = len(self._gpus) or self._cpus // min(threads_of_a_task(), self._cpus)
        self.width = min(room, spec.jobs) if spec.jobs else room
        self._most = spec.jobs or 2**30
        self._free_gpus, self._free_cpus = list(self._gpus), self._cpus
        self._queue: list[tuple[int, int, Task, Future[Outcome]]] = []
        self._idle: dict[str, list[_Worker]] = {}
        self._busy: list[_Worker] = []

    def where(self, cpus: int, gpus: int) -> str:
        if self.width == 1:
            return "this process"
        return f"a process with {f'{gpus} of {len(self._gpus)} GPUs' if gpus else f'{cpus} of {self._cpus} cores'}"

    def _start(self, task: Task, priority: int) -> Future[Outcome]:
        future: Future[Outcome] = Future()
        if self.width == 1:
            self._here(task, future)
            return future
        with self._lock:
            self._queue.append((-priority, next(self._numbers), task, future))
        self._dispatch()
        return future

    def _here(self, task: Task, future: Future[Outcome]) -> None:
        """In this process: errors keep their traceback, and an interruption goes straight through."""
        with threads(task.cpus), reporting(self.bar):
            try:
                outcome: Any = _Here(task.function(*task.args))
            except Exception as error:
                future.set_exception(error)
            else:
                future.set_result(outcome)

    def _dispatch(self) -> None:
        """Start what there is room for: a task on GPUs takes these, one without takes its cores."""
        with self._lock:
            self._queue.sort(key=lambda each: each[:2])
            for entry in list(self._queue):
                *_, task, future = entry
                if self.closing or len(self._busy) >= self._most:
                    return
                if task.gpus > len(self._gpus):
                    self._queue.remove(entry)
                    future.set_exception(UserError(f"{task.name} needs {task.gpus} GPUs, there are {len(self._gpus)}"))
                    continue
                cpus = 0 if task.gpus else min(task.cpus, self._cpus)
                if task.gpus > len(self._free_gpus) or cpus > self._free_cpus:
                    continue
                self._queue.remove(entry)
                gpus, self._free_gpus = self._free_gpus[: task.gpus], self._free_gpus[task.gpus :]
                self._free_cpus -= cpus
                visible = ",".join(gpus)
                idle = self._idle.get(visible)
                worker = idle.pop() if idle else _Worker(visible, task.cpus)
                self._busy.append(worker)
                running = worker.pool.submit(execute, task)
                running.add_done_callback(
                    lambda done, worker=worker, gpus=gpus, cpus=cpus, future=future: self._ended(  # type: ignore[misc]
                        done, worker, gpus, cpus, future
                    )
                )

    def _ended(self, done: Future[Outcome], worker: _Worker, gpus: list[str], cpus: int, future: Future[Outcome]) -> None:
        error = done.exception()
        kept = error is None and done.result().kind != "interrupted"  # one that was interrupted hears no second signal
        with self._lock:
            self._busy.remove(worker)
            self._free_gpus = sorted([*self._free_gpus, *gpus], key=self._gpus.index)
            self._free_cpus += cpus
            if kept and not self.closing:
                self._idle.setdefault(worker.visible, []).append(worker)
            else:
                worker.pool.shutdown(wait=False)
        if isinstance(error, BrokenProcessPool):
            future.set_exception(WorkerLost("its process died, perhaps for want of memory"))
        elif error is not None:
            future.set_exception(error)
        else:
            future.set_result(done.result())
        self._dispatch()

    def _stop(self) -> None:
        with self._lock:
            for *_, future in self._queue:
                future.cancel()
            self._queue.clear()
            busy = list(self._busy)
        for worker in busy:
            worker.signal(signal.SIGTERM)
        end = time.monotonic() + PATIENCE
        while self._busy and time.monotonic() < end:
            time.sleep(0.05)
        for worker in list(self._busy):
            worker.signal(signal.SIGKILL)

    def _release(self) -> None:
        with self._lock:
            workers = [worker for idle in self._idle.values() for worker in idle] + self._busy
        for worker in workers:
            worker.pool.shutdown(wait=True, cancel_futures=True)


class _Here:
    """The outcome of a task that ran in this process: nothing travels."""

    kind = "done"

    def __init__(self, value: Any) -> None:
        self.value = value

    def result(self) -> Any:
        return self.value


class _Worker:
    """One process that sees the GPUs ``visible`` (``0,3``; none for an empty text)."""

    def __init__(self, visible: str, cpus: int) -> None:
        self.visible = visible
        # spawned, not forked: a parent with torch's threads running, or with CUDA in use, must not be forked
        self.pool = ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), _begin, (visible, cpus))
        self._pid = self.pool.submit(os.getpid)

    def signal(self, number: int) -> None:
        with suppress(Exception):
            os.kill(self._pid.result(timeout=PATIENCE), number)


def _begin(visible: str, cpus: int) -> None:
    """What a process does first: it sees its own GPUs, and it ends with its parent, however that went."""
    os.environ["CUDA_VISIBLE_DEVICES"] = visible
    os.environ.update(dict.fromkeys(THREADS, str(cpus)))
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's business, which then asks its processes to stop
    parent = multiprocessing.parent_process()

    def follow() -> None:
        if parent is not None:
            parent.join()
            os._exit(1)

    threading.Thread(target=follow, daemon=True).start()


def _gpus(spec: ExecutorSpec) -> list[str]:
    """Ids of the GPUs to use, as ``CUDA_VISIBLE_DEVICES`` has them; none where the device is the CPU."""
    if "gpus" in spec.settings:
        return [part.strip() for part in spec.settings["gpus"].split(",") if part.strip()]
    if not (spec.device == "auto" or spec.device.startswith("cuda")):
        return []
    import torch

    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    count = torch.cuda.device_count()
    ids = [part.strip() for part in visible.split(",")][:count] if visible else [str(i) for i in range(count)]
    if ":" in spec.device:
        number = int(spec.device.partition(":")[2])
        return ids[number : number + 1]
    return ids


def _positive(key: str, text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise UserError(f"--executor-arg {key}={text}: give a whole number, 1 or more")
    return int(text)


EXECUTORS.register("local", LocalExecutor)
