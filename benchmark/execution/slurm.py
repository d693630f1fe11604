"""SLURM: a job for each unit, by submitit."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Mapping
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from benchmark.execution.base import SAVE_SECONDS, Executor, ExecutorSpec, WorkerLost, positive
from benchmark.execution.interrupts import STOP_SIGNALS
from benchmark.execution.progress import Bar
from benchmark.execution.unit import Outcome, Unit, execute
from common.errors import UserError
from common.files import home

QUERY_SECONDS = 3.0  # between two queries of the controller
RESULT_SECONDS = 90.0  # for the result of an ended job to appear (NFS caches missing files)
FINAL_STATES = (
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
    job: Any  # submitit's
    future: Future[Outcome] = field(default_factory=Future)
    final_state: str = "gone from the queue"  # which the controller soon forgets
    ended_at: float = 0.0  # when the controller first reported a final state
    failed_at: float = 0.0  # when the first of its nodes failed


class SlurmExecutor(Executor):
    """A SLURM job for each unit.

    A job at its time limit saves its state and is queued again (``scontrol requeue``); one that is
    preempted, cancelled or dies is submitted again by the driver. A job on several nodes
    (``spec.multi_node``) calls the unit's function on each; the first node's result counts.
    """

    options = None
    is_remote = True

    def __init__(self, spec: ExecutorSpec, bar: Bar) -> None:
        super().__init__(spec, bar)
        try:
            import submitit
        except ImportError:
            raise UserError(
                "--executor slurm needs submitit: pip install -e '.[scale]' in the checkout"
            ) from None
        if not shutil.which("sbatch"):
            raise UserError(
                "--executor slurm: no sbatch here; use a machine that submits jobs, or --executor"
                " local"
            )
        settings = {key.replace("-", "_"): value for key, value in spec.settings.items()}
        self._gpus_per_unit = positive("gpus", settings.pop("gpus", "1"))
        self._cpus_per_unit = positive("cpus", settings.pop("cpus", "0"), minimum=0)
        parameters: dict[str, Any] = {
            key: positive(key, settings.pop(key))
            for key in ("nodes", "signal_delay_s")
            if key in settings
        }
        parameters["setup"] = [settings.pop("setup")] if "setup" in settings else None
        if parameters.get("nodes", 1) > 1 and not spec.multi_node:
            raise UserError(
                f"--executor-arg nodes={parameters['nodes']}: only `train` computes on several"
                " nodes; leave nodes out, each unit is a job of its own"
            )
        self._submitit: Any = submitit.SlurmExecutor(folder=home().absolute() / "tasks")
        self._submitit.update_parameters(
            **parameters,
            time=None,  # the user's or the partition's limit, not submitit's five minutes
            stderr_to_stdout=True,
            additional_parameters={key.replace("_", "-"): value for key, value in settings.items()},
        )
        self._partition = settings.get("partition", os.environ.get("SBATCH_PARTITION", ""))
        partitions = _output_of(["sinfo", "-h", "-o", "%P %G"])[1]
        self.has_gpus = spec.uses_gpus and _with_gpus(partitions, self._partition)
        self.slots = self.cpu_slots = spec.jobs or 16
        self._jobs: dict[str, _Job] = {}
        self._queried = 0.0  # when the controller last answered

    def where(self, cpus: int, gpus: int) -> str:
        return super().where(self._cpus_per_unit or cpus, gpus * self._gpus_per_unit)

    def _start(self, unit: Unit) -> Future[Outcome] | None:
        self._submitit.folder = unit.folder / "slurm"  # removed with the unit
        self._submitit.update_parameters(
            job_name=f"cliptex:{unit.name}"[:120],
            cpus_per_task=self._cpus_per_unit or unit.cpus,
            gpus_per_node=unit.gpus * self._gpus_per_unit or None,
        )
        try:
            submitted = self._submitit.submit(in_job, unit)
        except Exception as error:
            lines = str(error).strip().splitlines() or [type(error).__name__]
            errors = [line for line in lines if "sbatch: " in line] or lines
            message = errors[-1][:300]
            busy = r"limit|timed out|[Uu]nable to contact|temporarily"
            if self._jobs and re.search(busy, message):
                return None  # try again when another job has ended
            raise UserError(f"sbatch refused {unit.name}: {message}") from error
        job = self._jobs[submitted.job_id] = _Job(submitted)
        return job.future

    def _poll(self) -> None:
        now = time.monotonic()
        if self._jobs and now - self._queried > QUERY_SECONDS:
            self._queried = now
            self._update_states(_query_states(self._jobs), now)
        for number, job in list(self._jobs.items()):
            if job.ended_at:
                with suppress(OSError), os.scandir(job.job.paths.folder) as files:
                    list(files)  # makes NFS ask its server
            outcomes = _outcomes(job.job)
            failures = [outcome for outcome in outcomes if outcome.kind != "done"]
            job.failed_at = (job.failed_at or now) if failures else 0.0
            # other nodes wait for one that failed
            late = failures and now - job.failed_at > SAVE_SECONDS
            if late or len(outcomes) == job.job.num_tasks:
                self._finish_job(number, (failures or outcomes)[0])
            elif job.ended_at and now - job.ended_at > (0 if self.closing else RESULT_SECONDS):
                reason = f"job {number} without a result: {job.final_state}{_last_line(job)}"
                self._finish_job(number, Outcome.failed(WorkerLost(reason)))

    def _update_states(self, states: Mapping[str, str], now: float) -> None:
        for number, job in self._jobs.items():
            state = states.get(number, "GONE")
            if state not in FINAL_STATES:
                job.ended_at = 0.0  # queued again
                continue
            job.ended_at = job.ended_at or now
            if state != "GONE":
                job.final_state = state

    def _finish_job(self, number: str, outcome: Outcome) -> None:
        job = self._jobs.pop(number)
        if outcome.kind != "done":
            # other nodes may still work, or SLURM may have queued it again by itself
            _output_of(["scancel", number])
        job.future.set_result(outcome)

    def _stop(self) -> None:
        if self._jobs:
            _output_of(["scancel", *self._jobs])


def in_job(unit: Unit) -> Outcome:
    """Run a unit on each node of a job; at the time limit (SIGUSR2) save and queue it again."""
    from submitit import JobEnvironment

    environment = JobEnvironment()
    environment.paths.result_pickle.unlink(missing_ok=True)  # of the attempt before a requeue
    node = environment.global_rank
    if node:  # the first node shows the progress; all write to one log
        unit = replace(unit, folder=unit.folder / f"node{node}")
        with suppress(OSError):  # ``execute`` reports a folder that is not visible
            unit.folder.mkdir(exist_ok=True)
            unit.log.symlink_to(f"../{unit.log.name}")
    outcome = execute(unit, (*STOP_SIGNALS, signal.SIGUSR2))
    if outcome.kind == "interrupted" and outcome.signal == signal.SIGUSR2:
        code = 0 if node else _output_of(["scontrol", "requeue", environment.job_id])[0]
        if code == 0:
            # a result would count as done; with KillOnBadExit, a non-zero code of another node
            # would let srun kill the first one while it saves
            os._exit(int(node == 0))
    return outcome


def _outcomes(job: Any) -> list[Outcome]:
    """The outcomes of a job's processes that have ended, the first node's first."""
    paths = [job.task(number).paths.result_pickle for number in range(job.num_tasks)]
    return [_read_outcome(path) for path in paths if path.is_file()]


def _read_outcome(path: Path) -> Outcome:
    """The outcome of one process, or the error of one that could not start."""
    from submitit.core.utils import pickle_load

    try:
        kind, value = pickle_load(path)
    except Exception as error:
        message = f"the result {path.name} cannot be read ({type(error).__name__})"
        return Outcome.failed(WorkerLost(message))
    if kind == "success":
        return value
    return Outcome.failed(RuntimeError(f"a job could not run its unit:\n{value}"))


def _last_line(job: _Job) -> str:
    with suppress(OSError, IndexError):
        output = job.job.paths.stdout.read_text(errors="replace")
        return f": {output.strip().splitlines()[-1][:300]}"
    return ""


def _query_states(jobs: Mapping[str, object]) -> dict[str, str]:
    """Job → state, for jobs that the controller remembers; UNKNOWN if it does not answer."""
    code, output = _output_of(["squeue", "-h", "-t", "all", "-o", "%i %T", "-j", ",".join(jobs)])
    if code and "Invalid job id" not in output:
        return dict.fromkeys(jobs, "UNKNOWN")
    return dict(line.split() for line in output.splitlines() if re.fullmatch(r"\S+ [A-Z_]+", line))


def _with_gpus(sinfo: str, partition: str) -> bool:
    """Whether jobs get GPUs, by the "PARTITION GRES" lines of ``sinfo``; * marks the default."""
    lines = [line.partition(" ")[::2] for line in sinfo.splitlines()]
    names = partition.split(",")
    return any(
        "gpu" in gres and (name.rstrip("*") in names if partition else name.endswith("*"))
        for name, gres in lines
    )


def _output_of(command: list[str]) -> tuple[int, str]:
    """Exit code and output of a command; 1 and the reason if it cannot run."""
    try:
        done = subprocess.run(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=60
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return 1, str(error)
    return done.returncode, done.stdout
