"""This machine: a process for each GPU, or for each share of the cores, from the standard library's
pool."""

from __future__ import annotations

import multiprocessing
import os
import re
import signal
import threading
import time
from collections.abc import Mapping
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress
from multiprocessing import resource_tracker
from typing import Any, ClassVar, Self

from benchmark.execution.base import PATIENCE, Executor, ExecutorSpec, positive
from benchmark.execution.progress import Bar, reporting
from benchmark.execution.task import THREADS, Outcome, Task, cores, execute, threads
from common.errors import UserError


class LocalExecutor(Executor):
    """Tasks in processes of this machine, each seeing only its own GPUs; where there is room for
    one at a time (``--jobs 1``), in this process, for debuggers. A process is kept for the next
    task, so that it imports its libraries once."""

    options: ClassVar[Mapping[str, str]] = {
        "gpus": "which GPUs, such as 0,1,2 (default: all)",
        "cpus": "how many cores (default: all)",
    }

    def __init__(self, spec: ExecutorSpec, bar: Bar) -> None:
        super().__init__(spec, bar)
        self._cpus = positive("cpus", spec.settings.get("cpus", str(cores())))
        self._gpus = _gpus(spec)
        self._has_room(self._cpus, len(self._gpus))
        # one GPU is no reason for the cores to wait for each other: only its tasks go one after the
        # other
        self._in_this_process = self.width == 1 and (spec.jobs == 1 or not self._gpus)
        self._workers: list[_Worker] = []

    def __enter__(self) -> Self:
        if self._in_this_process and ("gpus" in self.spec.settings or ":" in self.spec.device):
            os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(self._gpus)  # read when CUDA starts
        return super().__enter__()

    def _take(self, task: Task, priority: int) -> Future[Any]:
        if not self._in_this_process:
            return super()._take(task, priority)
        future: Future[Any] = Future()
        with threads(task.cpus), reporting(self.bar):
            # nothing travels, errors keep their traceback, an interruption goes straight through
            try:
                self._check(task)
                future.set_result(task.call())
            except Exception as error:
                future.set_exception(error)
        self.overview.ended()
        return future

    def _check(self, task: Task) -> None:
        if task.gpus > len(self._gpus):
            raise UserError(f"{task.name} needs {task.gpus} GPUs, there are {len(self._gpus)}")

    def _start(self, task: Task) -> Future[Outcome] | None:
        """A task on GPUs takes these, one without takes its cores."""
        self._check(task)
        cpus = 0 if task.gpus else min(task.cpus, self._cpus)
        if cpus > self._cpus - sum(each.cpus for each in self._workers if each.is_busy):
            return None
        idle = [each for each in self._workers if each.is_idle]
        worker = next((each for each in idle if len(each.gpus) == task.gpus), None)
        if worker is None:
            taken = {gpu for each in self._workers if each not in idle for gpu in each.gpus}
            gpus = [gpu for gpu in self._gpus if gpu not in taken][: task.gpus]
            if len(gpus) < task.gpus:
                return None
            if others := [each for each in idle if set(each.gpus) & set(gpus)]:
                for each in others:
                    each.end()
                return None
            worker = _Worker(gpus, task.cpus)
            self._workers.append(worker)
        try:
            return worker.run(task, cpus)
        except BrokenProcessPool:  # it was killed while it had nothing to do
            self._workers.remove(worker)
            return self._start(task)

    def _look(self) -> None:
        """Let processes end that are of no use any more. Until they have, they hold memory of their
        GPUs, and nobody else gets them."""
        for worker in list(self._workers):
            if not worker.is_busy and not worker.is_idle and not worker.ending:
                worker.end()
            if worker.ending and not worker.is_alive():
                self._workers.remove(worker)

    def _stop(self) -> None:
        for worker in self._workers:
            if worker.is_busy:
                worker.signal(signal.SIGTERM)

    def release(self) -> None:
        for worker in self._workers:
            if worker.is_busy:
                worker.signal(signal.SIGKILL)
        for worker in self._workers:
            worker.pool.shutdown(wait=True, cancel_futures=True)


class _Worker:
    """One process that sees the GPUs ``gpus``, perhaps none; ``cpus`` are the cores of its task."""

    def __init__(self, gpus: list[str], threads: int) -> None:
        self.gpus, self.cpus, self.ending = gpus, 0, 0.0
        self.running: Future[Outcome] | None = None
        # spawned, not forked: a parent with torch's threads running, or with CUDA in use, must not
        # be forked
        self.pool = ProcessPoolExecutor(
            1, multiprocessing.get_context("spawn"), _begin, (",".join(gpus), threads)
        )
        resource_tracker.ensure_running()  # it would let signals in again
        before = signal.pthread_sigmask(
            signal.SIG_BLOCK, [signal.SIGINT]
        )  # inherited, until ``_begin``
        try:
            self._pid = self.pool.submit(os.getpid)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)

    @property
    def is_busy(self) -> bool:
        return self.running is not None and not self.running.done()

    @property
    def is_idle(self) -> bool:
        """Whether it may run another task: one that was interrupted hears no second signal."""
        if self.is_busy or self.ending or self.running is None:
            return not (self.is_busy or self.ending)
        return self.running.exception() is None and self.running.result().kind != "interrupted"

    def run(self, task: Task, cpus: int) -> Future[Outcome]:
        self.cpus, self.running = cpus, self.pool.submit(execute, task, (signal.SIGTERM,))
        return self.running

    def end(self) -> None:
        self.ending = time.monotonic()
        self.pool.shutdown(wait=False)

    def is_alive(self) -> bool:
        """Whether a process that was told to end is still there; one that takes too long is
        killed."""
        if time.monotonic() > self.ending + PATIENCE:
            self.signal(signal.SIGKILL)
        try:
            os.kill(self._pid.result(timeout=0), 0)
        except Exception:  # it has ended, or never began
            return False
        return True

    def signal(self, number: int) -> None:
        with suppress(Exception):
            os.kill(self._pid.result(timeout=PATIENCE), number)


def _begin(visible: str, cpus: int) -> None:
    """What a process does first: it sees its own GPUs, and it ends with its parent, however that
    went."""
    os.environ.update({"CUDA_VISIBLE_DEVICES": visible, **dict.fromkeys(THREADS, str(cpus))})
    # loading processes: spawned ones, as this one is, would each import torch and MMLab first
    multiprocessing.set_start_method("fork", force=True)
    signal.signal(
        signal.SIGINT, signal.SIG_IGN
    )  # Ctrl-C is the parent's, which then asks its processes to stop
    signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGINT])

    def follow(parent: Any) -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=follow, args=(multiprocessing.parent_process(),), daemon=True).start()


def _gpus(spec: ExecutorSpec) -> list[str]:
    """Ids of the GPUs to use, as ``CUDA_VISIBLE_DEVICES`` has them; none where the device is the
    CPU."""
    asked, number = spec.settings.get("gpus"), spec.device.partition(":")[2]
    if asked is None and not spec.on_gpus:
        return []
    import torch

    count = torch.cuda.device_count()
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    there = (
        [part.strip() for part in visible.split(",")][:count]
        if visible
        else [str(i) for i in range(count)]
    )
    if asked is not None:
        ids = [part.strip() for part in asked.split(",") if part.strip()]
        if number:
            raise UserError(
                f"--executor-arg gpus={asked} with --device {spec.device}: give one of the two"
            )
        if len(set(ids)) < len(ids) or not all(
            re.fullmatch(r"\d+|(GPU|MIG)-\S+", each) for each in ids
        ):
            raise UserError(
                f"--executor-arg gpus={asked}: give the numbers of GPUs, each once, such as 0,1,2"
            )
        missing = [each for each in ids if each.isdigit() and each not in there]
        if there and missing:  # its tasks would see none
            raise UserError(
                f"--executor-arg gpus={asked}: there is no GPU {missing[0]} here, but"
                f" {', '.join(there)}"
            )
        return ids
    if number and not (number.isdigit() and int(number) < len(there)):
        raise UserError(
            f"no device {spec.device!r} here: there are {len(there)} GPUs; use cpu, cuda or auto"
        )
    return [there[int(number)]] if number else there
