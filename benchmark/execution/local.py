"""This machine: a process for each GPU, or for each share of the cores, from the standard library's pool."""

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

from backbones.errors import UserError
from benchmark.execution.base import Executor, ExecutorSpec, WorkerLost, cores, positive, threads_of_a_task
from benchmark.execution.progress import Bar, reporting
from benchmark.execution.task import THREADS, Outcome, Task, execute, threads

PATIENCE = 60.0  # seconds that an interrupted task has for saving what it has
DIED = "its process died, perhaps for want of memory"


class LocalExecutor(Executor):
    """Tasks in processes of this machine, each seeing only its own GPUs; where there is room for one at a time (``--jobs 1``),
    in this process, for debuggers. A process is kept for the next task, so that it imports its libraries once."""

    options: ClassVar[Mapping[str, str]] = {
        "gpus": "which GPUs, such as 0,1,2 (default: all)",
        "cpus": "how many cores (default: all)",
    }

    def __init__(self, spec: ExecutorSpec, bar: Bar) -> None:
        super().__init__(spec, bar)
        self._cpus = positive("cpus", spec.settings.get("cpus", str(cores())))
        self._gpus = _gpus(spec)
        self.has_gpus = bool(self._gpus)
        room = len(self._gpus) or self._cpus // min(threads_of_a_task(), self._cpus)
        self.width = min(room, spec.jobs or room)
        self.cpus = min(self._cpus, spec.jobs or self._cpus)
        # one GPU is no reason for the cores to wait for each other: only its tasks go one after the other
        self._in_this_process = self.width == 1 and (spec.jobs == 1 or not self._gpus)
        self._free_gpus, self._free_cpus = list(self._gpus), self._cpus
        self._idle: list[_Worker] = []
        self._busy: list[_Worker] = []
        self._ending: list[threading.Thread] = []

    def where(self, cpus: int, gpus: int) -> str:
        if self._in_this_process:
            return "this process"
        return f"a process with {f'{gpus} of {len(self._gpus)} GPUs' if gpus else f'{cpus} of {self._cpus} cores'}"

    def __enter__(self) -> Self:
        if self._in_this_process and ("gpus" in self.spec.settings or ":" in self.spec.device):
            os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(self._gpus)  # read when CUDA starts
        return super().__enter__()

    def _start(self, task: Task) -> Future[Any] | None:
        """A task on GPUs takes these, one without takes its cores."""
        if task.gpus > len(self._gpus):
            raise UserError(f"{task.name} needs {task.gpus} GPUs, there are {len(self._gpus)}")
        future: Future[Any] = Future()
        if self._in_this_process:
            future.set_result(self._here(task))
            return future
        cpus = 0 if task.gpus else min(task.cpus, self._cpus)
        if task.gpus > len(self._free_gpus) or cpus > self._free_cpus:
            return None
        kept = next((each for each in self._idle if len(each.gpus) == task.gpus), None)
        gpus = kept.gpus if kept else self._free_gpus[: task.gpus]
        if kept is not None:
            self._idle.remove(kept)
        elif others := [each for each in self._idle if set(each.gpus) & set(gpus)]:
            for each in others:
                self._retire(each)
            return None
        try:
            worker, running = self._run(kept, gpus, task)
        except BrokenProcessPool:
            raise WorkerLost(DIED) from None
        self._free_gpus, self._free_cpus = (
            [each for each in self._free_gpus if each not in gpus],
            self._free_cpus - cpus,
        )
        self._busy.append(worker)
        running.add_done_callback(lambda done: self._done(done, worker, cpus, future))
        return future

    def _here(self, task: Task) -> Future[Any]:
        """Its outcome in this process: nothing travels, errors keep their traceback, an interruption goes straight through."""
        outcome: Future[Any] = Future()
        with threads(task.cpus), reporting(self.bar):
            try:
                outcome.set_result(task.call())
            except Exception as error:
                outcome.set_exception(error)
        return outcome

    def _run(self, kept: _Worker | None, gpus: list[str], task: Task) -> tuple[_Worker, Future[Outcome]]:
        """In the process that is kept for these GPUs, or in a new one."""
        if kept is not None:
            with suppress(BrokenProcessPool):  # it was killed while it had nothing to do
                return kept, kept.run(task)
        worker = _Worker(gpus, task.cpus)
        return worker, worker.run(task)

    def _done(self, done: Future[Outcome], worker: _Worker, cpus: int, future: Future[Outcome]) -> None:
        error = done.exception()
        kept = error is None and done.result().kind != "interrupted"  # one that was interrupted hears no second signal
        with self._lock:
            self._busy.remove(worker)
            if kept or self.closing:  # else ``release`` waits for its end
                self._idle.append(worker)
                self._give_back(worker.gpus, cpus)
            else:
                self._retire(worker, cpus)
        if error is None:
            future.set_result(done.result())
        else:
            future.set_exception(WorkerLost(DIED) if isinstance(error, BrokenProcessPool) else error)

    def _retire(self, worker: _Worker, cpus: int = 0) -> None:
        """Let a process end; until it has, it holds memory of its GPUs, and nobody else gets them."""

        def end() -> None:
            killer = threading.Timer(PATIENCE, worker.signal, (signal.SIGKILL,))
            killer.start()
            worker.pool.shutdown(wait=True)
            killer.cancel()
            with self._lock:
                self._give_back(worker.gpus, cpus)
            self._dispatch()

        if worker in self._idle:
            self._idle.remove(worker)
        self._free_gpus = [each for each in self._free_gpus if each not in worker.gpus]
        thread = threading.Thread(target=end, name="end of a process", daemon=True)
        self._ending = [*(each for each in self._ending if each.is_alive()), thread]
        thread.start()

    def _give_back(self, gpus: list[str], cpus: int) -> None:
        self._free_gpus = sorted([*self._free_gpus, *gpus], key=self._gpus.index)
        self._free_cpus += cpus

    def _stop(self) -> None:
        for worker in list(self._busy):
            worker.signal(signal.SIGTERM)
        end = time.monotonic() + PATIENCE
        while self._busy and time.monotonic() < end:
            time.sleep(0.05)

    def release(self) -> None:
        with self._lock:
            busy, workers = list(self._busy), [*self._idle, *self._busy]
            self._idle = []
        for worker in busy:
            worker.signal(signal.SIGKILL)
        for worker in workers:
            worker.pool.shutdown(wait=True, cancel_futures=True)
        for thread in self._ending:
            thread.join()


class _Worker:
    """One process that sees the GPUs ``gpus``, perhaps none."""

    def __init__(self, gpus: list[str], cpus: int) -> None:
        self.gpus = gpus
        # spawned, not forked: a parent with torch's threads running, or with CUDA in use, must not be forked
        self.pool = ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), _begin, (",".join(gpus), cpus))
        resource_tracker.ensure_running()  # it would let signals in again
        before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])  # inherited, until ``_begin``
        try:
            self._pid = self.pool.submit(os.getpid)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)

    def run(self, task: Task) -> Future[Outcome]:
        return self.pool.submit(execute, task, (signal.SIGTERM,))

    def signal(self, number: int) -> None:
        with suppress(Exception):
            os.kill(self._pid.result(timeout=PATIENCE), number)


def _begin(visible: str, cpus: int) -> None:
    """What a process does first: it sees its own GPUs, and it ends with its parent, however that went."""
    os.environ.update({"CUDA_VISIBLE_DEVICES": visible, **dict.fromkeys(THREADS, str(cpus))})
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's, which then asks its processes to stop
    signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGINT])

    def follow(parent: Any) -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=follow, args=(multiprocessing.parent_process(),), daemon=True).start()


def _gpus(spec: ExecutorSpec) -> list[str]:
    """Ids of the GPUs to use, as ``CUDA_VISIBLE_DEVICES`` has them; none where the device is the CPU."""
    asked, number = spec.settings.get("gpus"), spec.device.partition(":")[2]
    if asked is None and not spec.on_gpus:
        return []
    import torch

    count = torch.cuda.device_count()
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    there = [part.strip() for part in visible.split(",")][:count] if visible else [str(i) for i in range(count)]
    if asked is not None:
        ids = [part.strip() for part in asked.split(",") if part.strip()]
        if number:
            raise UserError(f"--executor-arg gpus={asked} with --device {spec.device}: give one of the two")
        if len(set(ids)) < len(ids) or not all(re.fullmatch(r"\d+|(GPU|MIG)-\S+", each) for each in ids):
            raise UserError(f"--executor-arg gpus={asked}: give the numbers of GPUs, each once, such as 0,1,2")
        missing = [each for each in ids if each.isdigit() and each not in there]
        if there and missing:  # its tasks would see none
            raise UserError(f"--executor-arg gpus={asked}: there is no GPU {missing[0]} here, but {', '.join(there)}")
        return ids
    if number and not (number.isdigit() and int(number) < len(there)):
        raise UserError(f"no device {spec.device!r} here: there are {len(there)} GPUs; use cpu, cuda or auto")
    return [there[int(number)]] if number else there
