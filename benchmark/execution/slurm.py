"""SLURM: a job for each unit, by submitit."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import threading
import time
from concurrent.futures import Future
from typing import Any

from backbones.errors import UserError
from backbones.files import home
from benchmark.execution.base import EXECUTORS, Executor, ExecutorSpec, WorkerLost
from benchmark.execution.progress import Bar
from benchmark.execution.task import Outcome, Task, execute

LOOK = 1.0  # seconds between looks for results
ASK = 3.0  # seconds between two questions to the controller
GRACE = 10.0  # seconds that the result of a job which has left the queue may take to appear (shared file systems)
PATIENCE = 90.0  # seconds that cancelled jobs have for saving what they have
OURS = ("partition", "account", "qos", "constraint", "time", "mem", "nodes", "signal_delay_s", "comment", "exclude", "setup")
ENDED = ("FAILED", "NODE_FAIL", "TIMEOUT", "CANCELLED", "OUT_OF_MEMORY", "BOOT_FAIL", "DEADLINE", "COMPLETED")


class SlurmExecutor(Executor):
    """A SLURM job for each task. A job that meets its time limit saves what it has and is queued again (``scontrol requeue``);
    one that is preempted, cancelled or dies is submitted again by the driver."""

    about = "a SLURM job for each task (submitit); any option of sbatch as --executor-arg, such as partition=gpu, time=240"
    options = None
    several_nodes = True

    def __init__(self, spec: ExecutorSpec, bar: Bar) -> None:
        super().__init__(spec, bar)
        try:
            import submitit
        except ImportError:
            raise UserError("--executor slurm needs submitit: pip install 'cliptex-benchmark[scale]'") from None
        if not shutil.which("sbatch"):
            raise UserError("--executor slurm: no sbatch here; run on a machine that submits jobs, or use --executor local")
        settings = dict(spec.settings)
        self._gpus_of_a_task = int(settings.pop("gpus", 1))
        self._cpus_of_a_task = int(settings.pop("cpus", 0))
        self._engine: Any = submitit.SlurmExecutor(folder=home() / "slurm")
        known: dict[str, Any] = {key: _value(key, settings.pop(key)) for key in OURS if key in settings}
        try:
            self._engine.update_parameters(
                **known, stderr_to_stdout=True, additional_parameters={k.replace("-", "_"): v for k, v in settings.items()}
            )
        except (ValueError, NameError, TypeError) as error:
            raise UserError(f"--executor-arg: {str(error).splitlines()[0]}") from error
        self._partition = known.get("partition", "")
        self.has_gpus = "gpu" in _asked(["sinfo", "-h", "-o", "%G", *(["-p", self._partition] if self._partition else [])])[1]
        self.width = spec.jobs or 16
        self._most = spec.jobs or 2**30
        self._queue: list[tuple[int, int, Task, Future[Outcome]]] = []
        self._jobs: dict[str, tuple[Any, Task, Future[Outcome]]] = {}
        self._left: dict[str, float] = {}  # job → since when it is in the queue no more
        self._watcher = threading.Thread(target=self._watch, name="slurm", daemon=True)
        self._watcher.start()

    def where(self, cpus: int, gpus: int) -> str:
        needs = f"{gpus * self._gpus_of_a_task} GPU, " if gpus else ""
        return f"a SLURM job ({needs}{self._cpus_of_a_task or cpus} cores{f', {self._partition}' * bool(self._partition)})"

    def _start(self, task: Task, priority: int) -> Future[Outcome]:
        future: Future[Outcome] = Future()
        with self._lock:
            self._queue.append((-priority, next(self._numbers), task, future))
            self._dispatch()
        return future

    def _dispatch(self) -> None:
        with self._lock:
            self._queue.sort(key=lambda each: each[:2])
            while self._queue and len(self._jobs) < self._most and not self.closing:
                *_, task, future = self._queue.pop(0)
                self._engine.update_parameters(
                    job_name=f"cliptex:{task.name}"[:120],
                    cpus_per_task=self._cpus_of_a_task or task.cpus,
                    gpus_per_node=self._gpus_of_a_task if task.gpus else None,
                )
                try:
                    job = self._engine.submit(in_job, task)
                except Exception as error:
                    told = str(error).strip().splitlines() or [type(error).__name__]
                    future.set_exception(UserError(f"sbatch refused {task.name}: {told[-1][:300]}"))
                    continue
                self._jobs[job.job_id] = (job, task, future)

    def _watch(self) -> None:
        asked, states = 0.0, dict[str, str]()
        while not self._over.wait(LOOK):
            with self._lock:
                jobs = dict(self._jobs)
            if jobs and time.monotonic() - asked > ASK:
                asked, states = time.monotonic(), _states(jobs) or states
            for number, (job, task, future) in jobs.items():
                if job.paths.result_pickle.is_file():
                    self._finish(number, future, *_result(job))
                elif states and states.get(number, "gone") in (*ENDED, "gone"):
                    since = self._left.setdefault(number, time.monotonic())
                    if time.monotonic() - since > GRACE:
                        state = states.get(number, "")
                        self._finish(number, future, None, WorkerLost(f"job {number} ended {state or 'without a result'}"))
                else:
                    self._left.pop(number, None)  # requeued
            self._dispatch()

    def _finish(self, number: str, future: Future[Outcome], outcome: Outcome | None, error: Exception | None) -> None:
        with self._lock:
            self._jobs.pop(number, None)
            self._left.pop(number, None)
        if error is not None:
            future.set_exception(error)
        elif outcome is not None:
            future.set_result(outcome)

    def _stop(self) -> None:
        with self._lock:
            for *_, future in self._queue:
                future.cancel()
            self._queue.clear()
            numbers = list(self._jobs)
        if not numbers:
            return
        _asked(["scancel", *numbers])
        end = time.monotonic() + PATIENCE
        while time.monotonic() < end:
            states = _states(numbers)
            if states is not None and not any(state not in ENDED for state in states.values()):
                return
            time.sleep(0.5)


def in_job(task: Task) -> Outcome:
    """What a job runs. At its time limit (SIGUSR2, sent by SLURM before it) it saves what it has and is queued again."""
    outcome = execute(task, (signal.SIGTERM, signal.SIGINT, signal.SIGUSR2))
    if outcome.kind == "interrupted" and outcome.signal == signal.SIGUSR2:
        code, _ = _asked(["scontrol", "requeue", os.environ["SLURM_JOB_ID"]])
        if code == 0:
            time.sleep(PATIENCE)  # SLURM ends this job now; with a result it would count as done
    return outcome


def _result(job: Any) -> tuple[Outcome | None, Exception | None]:
    """What a job left: the task's outcome, or the error of a job that could not even begin."""
    from submitit.core.utils import pickle_load

    try:
        kind, value = pickle_load(job.paths.result_pickle)
    except Exception as error:
        return None, WorkerLost(f"the result of job {job.job_id} cannot be read ({type(error).__name__})")
    if kind == "success":
        return value, None
    return None, RuntimeError(f"job {job.job_id} could not run its task:\n{value}")


def _states(jobs: Any) -> dict[str, str] | None:
    """Job → its state, for those that the controller still knows; None when it does not answer."""
    code, told = _asked(["squeue", "-h", "-t", "all", "-o", "%i %T", "-j", ",".join(jobs)])
    if code and "Invalid job id" not in told:
        return None
    found = (line.split() for line in told.splitlines() if len(line.split()) == 2)
    return dict(found) if code == 0 else {"": "gone"}


def _asked(command: list[str]) -> tuple[int, str]:
    try:
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=60)
    except (OSError, subprocess.TimeoutExpired) as error:
        return 1, str(error)
    return done.returncode, done.stdout


def _value(key: str, text: str) -> int | str:
    if key in ("time", "nodes", "signal_delay_s") and not text.isdigit():
        raise UserError(f"--executor-arg {key}={text}: give a whole number{' of minutes' if key == 'time' else ''}")
    return int(text) if text.isdigit() and key not in ("account", "comment") else text


EXECUTORS.register("slurm", SlurmExecutor)
