"""This machine: a process for each GPU, else for each quarter of the cores (at most 8 each);
``--jobs N``: N processes that share all cores.

Units side by side are faster than more threads for each: in small layers OpenMP's threads mostly
wait for each other.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
from collections.abc import Mapping
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress
from multiprocessing import resource_tracker

from benchmark.executor import ExecutionOptions, Executor
from benchmark.progress import Bar
from benchmark.unit import Outcome, Unit, environment_variables, execute
from cliptex_common.errors import UserError
from cliptex_common.process import (
    accelerator_ids,
    cores,
    end_with_parent,
    restrict_accelerators,
    without_script,
)


class LocalExecutor(Executor):
    """Units in processes of this machine, each of which sees only its own GPUs.

    Where only one unit can run at a time (``--jobs 1``, or no GPU and too few cores for two), or
    there is only one, units run in this process, where debuggers work. Otherwise worker processes
    are reused, so that they import libraries once. Setting ``cpus``: how many cores (default: all).
    """

    setting_names = ("cpus",)

    def __init__(self, options: ExecutionOptions, bar: Bar) -> None:
        super().__init__(options, bar)
        self._cpus = options.executor_integer("cpus", cores())
        self._gpu_kind, self._gpus = _select_gpus(options)
        self._set_capacity(self._cpus, len(self._gpus))
        # with one GPU, ``slots`` is 1, too, but units without a GPU run beside the one that has it
        self.in_this_process = self.slots == 1 and (options.jobs == 1 or not self._gpus)
        self._workers: list[_Worker] = []

    def expect(self, units: int) -> None:
        if units == 1 and not (self.options.jobs or self._gpus or self._workers):
            self.in_this_process = True  # a worker would import all libraries once more

    def _start(self, unit: Unit) -> Future[Outcome] | None:
        """Run a unit on its own GPU or, without one, on its cores; ``gpus`` is 0 or 1."""
        # units on a GPU do not wait for cores
        cpus = 0 if unit.gpus else min(unit.cpus, self._cpus)
        busy = [worker for worker in self._workers if worker.is_busy]
        if cpus > self._cpus - sum(worker.reserved_cores for worker in busy):
            return None
        idle = [worker for worker in self._workers if worker not in busy]
        worker = next((each for each in idle if bool(each.gpu) == bool(unit.gpus)), None)
        if worker is None:
            used = {each.gpu for each in self._workers}
            gpu = next((gpu for gpu in self._gpus if gpu not in used), "") if unit.gpus else ""
            if unit.gpus and not gpu:
                return None
            worker = _Worker(gpu, restrict_accelerators(self._gpu_kind if gpu else "", gpu))
            self._workers.append(worker)
        try:
            return worker.run(unit, cpus)
        except BrokenProcessPool:  # its process has died
            self._workers.remove(worker)
            return self._start(unit)  # in another

    def release(self) -> None:
        for worker in self._workers:
            if worker.is_busy:
                worker.kill()
        for worker in self._workers:
            worker.pool.shutdown(wait=True, cancel_futures=True)


# the server from which workers are forked imports first what units need
multiprocessing.get_context("forkserver").set_forkserver_preload(["benchmark.worker_imports"])


class _Worker:
    """One process.

    Attributes:
        gpu: the only one that it sees, by ``environment``; '' for none.
        reserved_cores: cores of its current unit; 0 on a GPU.
    """

    def __init__(self, gpu: str, environment: Mapping[str, str]) -> None:
        self.gpu, self.reserved_cores = gpu, 0
        self.running: Future[Outcome] | None = None
        # Not forked from this process, which has torch's threads or a GPU in use. Without a GPU,
        # workers are forked from a server that has imported the libraries: so they start at once
        # and share its memory. That server may have looked for GPUs before a worker's are chosen.
        method = "spawn" if gpu else "forkserver"
        # Processes inherit the blocked signals, so that Ctrl-C or a lost terminal does not end a
        # worker before ``_initialize``; the server and Python's resource tracker, which must
        # outlive the workers, keep SIGHUP blocked. The pool starts that tracker, if it is the
        # first, and unblocks SIGINT after that.
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGHUP])
        self.pool = ProcessPoolExecutor(
            1,
            multiprocessing.get_context(method),
            _initialize,
            ({**os.environ, **environment},),
        )
        resource_tracker.ensure_running()
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
        # The server gets this process's ``sys.path``: Python's own choice begins with the working
        # folder, where a user may have a ``common.py``.
        paths = os.pathsep.join(filter(None, sys.path))
        variables = {"PYTHONPATH": paths, "PYTHONSAFEPATH": "1"}
        try:
            with without_script(), environment_variables(variables):
                self._pid = self.pool.submit(os.getpid)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)

    @property
    def is_busy(self) -> bool:
        return self.running is not None and not self.running.done()

    def run(self, unit: Unit, reserved_cores: int) -> Future[Outcome]:
        self.reserved_cores = reserved_cores
        self.running = self.pool.submit(execute, unit, (signal.SIGTERM,))
        return self.running

    def kill(self) -> None:
        with suppress(Exception):
            os.kill(self._pid.result(timeout=10), signal.SIGKILL)


def _initialize(environment: Mapping[str, str]) -> None:
    """Set up a worker process: the GPU that it sees, and an end when its parent ends."""
    os.environ.clear()
    os.environ.update(environment)
    # also with a GPU: spawned data-loading processes would each import torch and MMLab
    multiprocessing.set_start_method("fork", force=True)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # ignored by the process that it is forked from
    for number in (signal.SIGINT, signal.SIGHUP):  # the parent gets these, and stops its workers
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGINT, signal.SIGHUP])
    end_with_parent()


def _select_gpus(options: ExecutionOptions) -> tuple[str, list[str]]:
    """The type of the GPUs to use, and their numbers: all that this process sees, or one."""
    if not options.uses_gpus:
        return "", []
    from cliptex_common.device import current_device, device_count

    kind, count = current_device().type, device_count()
    gpus = accelerator_ids(kind, count)
    number = options.device.partition(":")[2]
    if not number:
        return kind, gpus
    if not (number.isdecimal() and int(number) < count):
        raise UserError(
            f"--device {options.device}: this machine has {count} GPUs; use cpu or auto"
        )
    return kind, [gpus[int(number)]]
