"""SLURM: a job for each unit, by submitit."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import time
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from typing import Any

from backbones.errors import UserError, nearest
from backbones.files import home
from benchmark.execution.base import EXECUTORS, Executor, ExecutorSpec, WorkerLost, positive
from benchmark.execution.progress import Bar
from benchmark.execution.task import Outcome, Task, execute

ASK = 3.0  # seconds between two questions to the controller
GRACE = 10.0  # seconds that the result of a job which has left the queue may take to appear (shared file systems)
PATIENCE = 90.0  # seconds that cancelled jobs have for saving what they have
OURS = (
    "partition",
    "account",
    "qos",
    "constraint",
    "time",
    "mem",
    "nodes",
    "signal_delay_s",
    "comment",
    "exclude",
    "setup",
)
ENDED = ("FAILED", "NODE_FAIL", "TIMEOUT", "CANCELLED", "OUT_OF_MEMORY", "BOOT_FAIL", "DEADLINE", "COMPLETED", "GONE")
FORMS = {  # of values that sbatch would only refuse for each job
    "time": (r"\d+(-\d+)?(:\d+){0,2}", "minutes, or days-hours:minutes"),
    "nodes": (r"\d+", "a whole number"),
    "signal_delay_s": (r"\d+", "a whole number of seconds"),
}


@dataclass(eq=False)
class _Job:
    engine: Any
    future: Future[Outcome] = field(default_factory=Future)
    since: float = 0.0  # when the controller was first seen to have it no more


class SlurmExecutor(Executor):
    """A SLURM job for each task. A job that meets its time limit saves what it has and is queued again (``scontrol requeue``);
    one that is preempted, cancelled or dies is submitted again by the driver."""

    about = (
        "a SLURM job for each task (submitit); any option of sbatch as --executor-arg, such as partition=gpu, time=240"
    )
    options = None
    several_nodes = True

    def __init__(self, spec: ExecutorSpec, bar: Bar) -> None:
        super().__init__(spec, bar)
        try:
            import submitit
        except ImportError:
            raise UserError("--executor slurm needs submitit: pip install 'cliptex-benchmark[scale]'") from None
        if not shutil.which("sbatch"):
            raise UserError(
                "--executor slurm: no sbatch here; run on a machine that submits jobs, or use --executor local"
            )
        settings = {key.replace("-", "_"): value for key, value in spec.settings.items()}
        _check(settings)
        self._gpus_of_a_task = positive("gpus", settings.pop("gpus", "1"))
        self._cpus_of_a_task = positive("cpus", settings.pop("cpus", "0"), least=0)
        known: dict[str, Any] = {key: settings.pop(key) for key in OURS if key in settings}
        for key in ("nodes", "signal_delay_s"):
            if key in known:
                known[key] = int(known[key])
        if "setup" in known:
            known["setup"] = [known["setup"]]
        self._engine: Any = submitit.SlurmExecutor(folder=home().absolute() / "tasks")
        # without a time, the partition's own limit and not submitit's five minutes
        self._engine.update_parameters(
            **{"time": None, **known},
            stderr_to_stdout=True,
            additional_parameters={k.replace("_", "-"): v for k, v in settings.items()},
        )
        self._partition = known.get("partition", "")
        in_partition = ["-p", self._partition] if self._partition else []
        self.has_gpus = spec.device != "cpu" and "gpu" in _asked(["sinfo", "-h", "-o", "%G", *in_partition])[1]
        self.width = spec.jobs or 16
        self._jobs: dict[str, _Job] = {}
        self._asked = 0.0

    def where(self, cpus: int, gpus: int) -> str:
        needs = f"{gpus * self._gpus_of_a_task} GPU, " if gpus else ""
        return (
            f"a SLURM job ({needs}{self._cpus_of_a_task or cpus} cores{f', {self._partition}' * bool(self._partition)})"
        )

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
            told = (str(error).strip().splitlines() or [type(error).__name__])[-1][:300]
            if self._jobs and re.search(r"limit|timed out|[Uu]nable to contact|temporarily", told):
                return None  # too many jobs for this user, or a controller that is busy: when the next one has ended
            raise UserError(f"sbatch refused {task.name}: {told}") from error
        self._jobs[job.job_id] = found = _Job(job)
        return found.future

    def _look(self) -> None:
        with self._lock:
            jobs = dict(self._jobs)
        states: dict[str, str] | None = None
        if jobs and time.monotonic() - self._asked > ASK:
            states, self._asked = _states(jobs), time.monotonic()
        for number, job in jobs.items():
            if job.engine.paths.result_pickle.is_file():
                self._finish(number)
                continue
            state = states.get(number, "GONE") if states is not None else ""
            if state in ENDED:
                job.since = job.since or time.monotonic()
            elif state:
                job.since = 0.0  # queued again
            if job.since and time.monotonic() - job.since > GRACE:
                self._finish(number, state or "without a result")
        self._dispatch()

    def _finish(self, number: str, lost: str = "") -> None:
        with self._lock:
            job = self._jobs.pop(number)
        outcome, error = (
            (None, WorkerLost(f"job {number} ended {lost}{_last_line(job)}")) if lost else _result(job.engine)
        )
        if outcome is None or outcome.kind == "interrupted":
            _asked(["scancel", number])  # SLURM may have queued it again by itself, and the driver submits another
        if outcome is not None:
            job.future.set_result(outcome)
        else:
            job.future.set_exception(error)

    def _stop(self) -> None:
        with self._lock:
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
    first = os.environ.get("SLURM_PROCID", "0") == "0"
    if not first:  # of a job of several nodes: one speaks for all
        task = replace(task, folder=task.folder / f"node{os.environ['SLURM_PROCID']}")
    outcome = execute(task, (signal.SIGTERM, signal.SIGINT, signal.SIGUSR2))
    if outcome.kind == "interrupted" and outcome.signal == signal.SIGUSR2:
        code = _asked(["scontrol", "requeue", os.environ["SLURM_JOB_ID"]])[0] if first else 0
        if code == 0:
            os._exit(1)  # with a result it would count as done
    return outcome


def _result(job: Any) -> tuple[Outcome | None, Exception]:
    """What a job left: the task's outcome, or the error of a job that could not even begin."""
    from submitit.core.utils import pickle_load

    try:
        kind, value = pickle_load(job.paths.result_pickle)
    except Exception as error:
        return None, WorkerLost(f"the result of job {job.job_id} cannot be read ({type(error).__name__})")
    return (value if kind == "success" else None), RuntimeError(f"job {job.job_id} could not run its task:\n{value}")


def _last_line(job: _Job) -> str:
    try:
        said = job.engine.paths.stdout.read_text(errors="replace").strip().splitlines()
    except OSError:
        return ""
    return f": {said[-1][:300]}" if said else ""


def _states(jobs: Any) -> dict[str, str] | None:
    """Job → its state, for those that the controller still knows; None when it does not answer."""
    code, told = _asked(["squeue", "-h", "-t", "all", "-o", "%i %T", "-j", ",".join(jobs)])
    if code and "Invalid job id" not in told:
        return None
    return dict(line.split() for line in told.splitlines() if re.fullmatch(r"\S+ [A-Z_]+", line))


def _asked(command: list[str]) -> tuple[int, str]:
    try:
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=60)
    except (OSError, subprocess.TimeoutExpired) as error:
        return 1, str(error)
    return done.returncode, done.stdout


def _check(settings: dict[str, str]) -> None:
    """Settings that sbatch does not have, before anything is submitted. Raises ``UserError``."""
    code, told = _asked(["sbatch", "--help"])
    known = {*OURS, "gpus", "cpus", *(name.replace("-", "_") for name in re.findall(r"--([a-z][a-z-]+)", told))}
    for key, value in settings.items():
        if code == 0 and key not in known:
            raise UserError(f"--executor-arg {key}: sbatch has no such option; {nearest(key, known)}")
        form, meant = FORMS.get(key, (".*", ""))
        if not re.fullmatch(form, value):
            raise UserError(f"--executor-arg {key}={value}: give {meant}")


EXECUTORS.register("slurm", SlurmExecutor)
