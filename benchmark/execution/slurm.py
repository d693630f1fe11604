"""SLURM: a job for each unit, by submitit."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Iterable
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from benchmark.execution.base import PATIENCE, Executor, ExecutorSpec, WorkerLost, positive
from benchmark.execution.interrupts import ASKED
from benchmark.execution.progress import Bar
from benchmark.execution.task import Outcome, Task, execute
from common.errors import UserError
from common.files import home

ASK = 3.0  # seconds between two questions to the controller
# seconds that the result of a job which has left the queue may take to appear (NFS remembers what
# is not there)
GRACE = 90.0
SUBMITITS = ("nodes", "signal_delay_s")  # settings that are submitit's business, not only sbatch's
OURS = (  # what a user cannot set: the executor does
    "array",
    "chdir",
    "cpus_per_task",
    "error",
    "gpus_per_node",
    "job_name",
    "ntasks",
    "ntasks_per_node",
    "output",
    "signal",
    "wrap",
)
ENDED = (
    "FAILED",
    "NODE_FAIL",
    "TIMEOUT",
    "CANCELLED",
    "OUT_OF_MEMORY",
    "BOOT_FAIL",
    "DEADLINE",
    "COMPLETED",
    "PREEMPTED",
    "REVOKED",
    "LAUNCH_FAILED",
    "RECONFIG_FAIL",
    "GONE",
)


@dataclass(eq=False)
class _Job:
    engine: Any
    future: Future[Outcome] = field(default_factory=Future)
    since: float = 0.0  # when the controller was first seen to have it no more
    bad: float = 0.0  # when the first of its nodes was seen to have failed


class SlurmExecutor(Executor):
    """A SLURM job for each task. A job that meets its time limit saves what it has and is queued
    again (``scontrol requeue``); one that is preempted, cancelled or dies is submitted again by the
    driver. On each of its nodes a job of several (``spec.several_nodes``) calls the task's
    function; its result is the first node's."""

    options = None
    several_nodes = True

    def __init__(self, spec: ExecutorSpec, bar: Bar) -> None:
        super().__init__(spec, bar)
        try:
            import submitit
        except ImportError:
            raise UserError(
                "--executor slurm needs submitit: pip install 'cliptex-benchmark[scale]'"
            ) from None
        if not shutil.which("sbatch"):
            raise UserError(
                "--executor slurm: no sbatch here; use a machine that submits jobs, or --executor"
                " local"
            )
        settings = {key.replace("-", "_"): value for key, value in spec.settings.items()}
        if ours := [key for key in settings if key in OURS]:
            told = "the executor sets it itself; there are cpus, gpus, nodes, signal_delay_s"
            raise UserError(f"--executor-arg {ours[0]}: {told}")
        self._gpus_of_a_task = positive("gpus", settings.pop("gpus", "1"))
        self._cpus_of_a_task = positive("cpus", settings.pop("cpus", "0"), least=0)
        known: dict[str, Any] = {
            key: positive(key, settings.pop(key)) for key in SUBMITITS if key in settings
        }
        known["setup"] = [settings.pop("setup")] if "setup" in settings else None
        if known.get("nodes", 1) > 1 and not spec.several_nodes:
            raise UserError(
                f"--executor-arg nodes={known['nodes']}: only `train` computes on several nodes;"
                " leave nodes out, each unit is a job of its own anyway"
            )
        self._engine: Any = submitit.SlurmExecutor(folder=home().absolute() / "tasks")
        self._engine.update_parameters(
            **known,
            # the partition's own limit and not submitit's five minutes; else sbatch is told the
            # user's
            time=None,
            stderr_to_stdout=True,
            additional_parameters={key.replace("_", "-"): value for key, value in settings.items()},
        )
        self._partition = settings.get("partition", os.environ.get("SBATCH_PARTITION", ""))
        partitions = _asked(["sinfo", "-h", "-o", "%P %G"])[1]
        self.has_gpus = spec.on_gpus and _with_gpus(partitions, self._partition)
        self.width = self.cpus = spec.jobs or 16
        self._jobs: dict[str, _Job] = {}
        self._last = 0.0  # when the controller was asked

    def where(self, cpus: int, gpus: int) -> str:
        return super().where(self._cpus_of_a_task or cpus, gpus * self._gpus_of_a_task)

    def _start(self, task: Task) -> Future[Outcome] | None:
        self._engine.folder = task.folder / "slurm"  # goes with the task
        self._engine.update_parameters(
            job_name=f"cliptex:{task.name}"[:120],
            cpus_per_task=self._cpus_of_a_task or task.cpus,
            gpus_per_node=task.gpus * self._gpus_of_a_task or None,
        )
        try:
            job = self._engine.submit(in_job, task)
        except Exception as error:
            lines = str(error).strip().splitlines() or [type(error).__name__]
            told = next((line for line in reversed(lines) if "sbatch: " in line), lines[-1])[:300]
            if self._jobs and re.search(r"limit|timed out|[Uu]nable to contact|temporarily", told):
                # too many jobs for this user, or a controller that is busy: when the next one has
                # ended
                return None
            raise UserError(f"sbatch refused {task.name}: {told}") from error
        self._jobs[job.job_id] = found = _Job(job)
        return found.future

    def _look(self) -> None:
        states: dict[str, str] | None = None
        if self._jobs and time.monotonic() - self._last > ASK:
            states, self._last = _states(self._jobs), time.monotonic()
        for number, job in list(self._jobs.items()):
            if job.since:
                with suppress(OSError), os.scandir(job.engine.paths.folder) as files:
                    list(files)  # NFS asks its server
            outcomes = _outcomes(job.engine)
            bad = [each for each in outcomes if each.kind != "done"]
            job.bad = (job.bad or time.monotonic()) if bad else 0.0
            late = (
                job.bad and time.monotonic() - job.bad > PATIENCE
            )  # other nodes wait for one that failed
            if late or len(outcomes) == job.engine.num_tasks:
                self._finish(number, (bad or outcomes)[0])
                continue
            state = states.get(number, "GONE") if states is not None else ""
            if state in ENDED:
                job.since = job.since or time.monotonic()
            elif state:
                job.since = 0.0  # queued again
            if job.since and time.monotonic() - job.since > (0 if self.closing else GRACE):
                lost = WorkerLost(
                    f"job {number} ended {state or 'without a result'}{_last_line(job)}"
                )
                self._finish(number, Outcome.failed(lost))

    def _finish(self, number: str, outcome: Outcome) -> None:
        job = self._jobs.pop(number)
        if outcome.kind != "done":
            # other nodes may be at work, or SLURM may have queued it again by itself, and the
            # driver submits another
            _asked(["scancel", number])
        job.future.set_result(outcome)

    def _stop(self) -> None:
        if self._jobs:
            _asked(["scancel", *self._jobs])


def in_job(task: Task) -> Outcome:
    """What a job runs, on each of its nodes. At its time limit (SIGUSR2, sent by SLURM before it)
    it saves what it has and is queued again."""
    from submitit import JobEnvironment

    environment = JobEnvironment()
    environment.paths.result_pickle.unlink(
        missing_ok=True
    )  # of the attempt before, where SLURM queued the job again
    node = environment.global_rank
    if node:  # the first shows the progress of all; what they say goes to one log
        task = replace(task, folder=task.folder / f"node{node}")
        with suppress(OSError):  # it does not see the task's folder: ``execute`` says so
            task.folder.mkdir(exist_ok=True)
            task.log.symlink_to(f"../{task.log.name}")
    outcome = execute(task, (*ASKED, signal.SIGUSR2))
    if outcome.kind == "interrupted" and outcome.signal == signal.SIGUSR2:
        code = 0 if node else _asked(["scontrol", "requeue", environment.job_id])[0]
        if code == 0:
            # with a result it would count as done; where KillOnBadExit is set, srun would kill a
            # first node that still saves
            os._exit(int(node == 0))
    return outcome


def _outcomes(job: Any) -> list[Outcome]:
    """How a job's processes ended, as far as they have, the first node's first."""
    paths = [job.task(number).paths.result_pickle for number in range(job.num_tasks)]
    return [_outcome(path) for path in paths if path.is_file()]


def _outcome(path: Path) -> Outcome:
    """What a process left: its task's outcome, or the error of one that could not even begin."""
    from submitit.core.utils import pickle_load

    try:
        kind, value = pickle_load(path)
    except Exception as error:
        return Outcome.failed(
            WorkerLost(f"the result {path.name} cannot be read ({type(error).__name__})")
        )
    return (
        value
        if kind == "success"
        else Outcome.failed(RuntimeError(f"a job could not run its task:\n{value}"))
    )


def _last_line(job: _Job) -> str:
    with suppress(OSError, IndexError):
        output = job.engine.paths.stdout.read_text(errors="replace")
        return f": {output.strip().splitlines()[-1][:300]}"
    return ""


def _states(jobs: Iterable[str]) -> dict[str, str] | None:
    """Job → its state, for those that the controller still knows; None when it does not answer."""
    code, told = _asked(["squeue", "-h", "-t", "all", "-o", "%i %T", "-j", ",".join(jobs)])
    if code and "Invalid job id" not in told:
        return None
    return dict(line.split() for line in told.splitlines() if re.fullmatch(r"\S+ [A-Z_]+", line))


def _with_gpus(told: str, partition: str) -> bool:
    """Whether a job gets to see GPUs, by sinfo's "PARTITION GRES" lines; where none is named it
    goes to the one with a star."""
    lines = [line.partition(" ")[::2] for line in told.splitlines()]
    names = partition.split(",")
    return any(
        "gpu" in gres and (name.rstrip("*") in names if partition else name.endswith("*"))
        for name, gres in lines
    )


def _asked(command: list[str]) -> tuple[int, str]:
    try:
        done = subprocess.run(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=60
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return 1, str(error)
    return done.returncode, done.stdout
