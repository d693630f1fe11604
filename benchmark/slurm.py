"""SLURM: a job for each unit, by submitit."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any

from benchmark.executor import SAVE_SECONDS, ExecutionOptions, Executor
from benchmark.progress import Bar
from benchmark.unit import STOP_SIGNALS, Outcome, Unit, WorkerLost, execute, threads_per_unit
from cliptex_common.errors import UserError
from cliptex_common.files import home
from cliptex_common.process import cores

QUERY_SECONDS = 3.0  # between two queries of the controller
RESULT_SECONDS = 90.0  # for the result of an ended job to appear (NFS caches missing files)
# --executor-arg keys that are not passed on to sbatch as they are
OWN_SETTINGS = ("gpus", "cpus", "nodes", "signal_delay_s", "setup")
FORGOTTEN = "FORGOTTEN"  # by the controller; not a state of SLURM
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
    FORGOTTEN,
)


@dataclass(eq=False)
class _Job:
    submitted: Any  # submitit's job
    future: Future[Outcome] = field(default_factory=Future)
    final_state: str = "gone from the queue"  # which the controller soon forgets
    ended_at: float = 0.0  # when the controller first reported a final state


class SlurmExecutor(Executor):
    """A SLURM job for each unit.

    A job at its time limit saves its state and is queued again (``scontrol requeue``); one that is
    preempted, cancelled or dies is submitted again by the submitting process. With
    ``options.multi_node``, a unit is called in several processes, one for each GPU of each node
    (one for each node on CPUs), with the environment of ``torch.distributed``; the first one's
    result counts.
    """

    setting_names = None
    is_remote = True

    def __init__(self, options: ExecutionOptions, bar: Bar) -> None:
        super().__init__(options, bar)
        submitit = options.executor_library("submitit")
        if not shutil.which("sbatch"):
            raise UserError(
                "--executor slurm: no sbatch here; use a machine that submits jobs, or --executor"
                " local"
            )
        self._gpus_per_unit = options.executor_integer("gpus", 1)
        self._cpus_per_process = options.executor_integer("cpus", 0, minimum=0)
        nodes = options.executor_integer("nodes", 1)
        if nodes > 1 and not options.multi_node:
            raise UserError(
                f"--executor-arg nodes={nodes}: only `train` computes on several nodes; leave nodes"
                " out, each unit is a job of its own"
            )
        arguments = options.executor_arg
        settings = {key: arguments[key] for key in arguments if key not in OWN_SETTINGS}
        self._submitit: Any = submitit.SlurmExecutor(folder=home().absolute() / "tasks")
        self._submitit.update_parameters(
            nodes=nodes,
            signal_delay_s=options.executor_integer("signal_delay_s", 90),
            setup=[arguments["setup"]] if "setup" in arguments else None,
            time=None,  # the user's or the partition's limit, not submitit's five minutes
            stderr_to_stdout=True,
            srun_args=["--kill-on-bad-exit=1"],  # processes of a job wait for each other
            additional_parameters={key.replace("_", "-"): value for key, value in settings.items()},
        )
        self.has_gpus = options.uses_gpus and _has_gpus(
            settings.get("partition") or os.environ.get("SBATCH_PARTITION", "")
        )
        if "gpus" in arguments and not self.has_gpus:
            reason = "the partition has none" if options.uses_gpus else f"--device {options.device}"
            raise UserError(
                f"--executor-arg gpus={arguments['gpus']}: units get no GPU ({reason}); leave it"
                " out, or name a partition that has some"
            )
        # guesses, instead of ``_set_capacity``: nobody knows how many jobs SLURM will run at once
        self.slots = self.cpu_slots = options.jobs or 16
        # jobs do not share a machine's cores, whatever ``--jobs`` is
        self.threads = self._cpus_per_process or threads_per_unit(cores())
        self._jobs: dict[str, _Job] = {}
        self._queried = 0.0  # when the controller last answered

    def preview(self, names: Sequence[str]) -> list[str]:
        unit = Unit(print, (), names[0], home().absolute() / "tasks/UNIT", **self.resources())
        self._describe(unit)
        script = self._submitit._make_submission_file_text("true", "")
        code, output = _output_of(["sbatch", "--test-only"], script)
        if code:
            raise UserError(f"sbatch refuses {unit.name}: {_reason(output)}")
        lines = [line for line in script.splitlines() if line.startswith("#SBATCH")]
        gpus = unit.gpus * self._gpus_per_unit
        jobs = "1 job" if len(names) == 1 else f"{len(names)} jobs, each"
        return [f"{jobs} with {gpus} GPUs and", *lines]

    def _describe(self, unit: Unit) -> None:
        """Set what ``sbatch`` is told of a unit."""
        gpus = unit.gpus * self._gpus_per_unit
        self._submitit.folder = unit.folder / "slurm"  # removed with the unit
        self._submitit.update_parameters(
            job_name=f"cliptex:{unit.name}"[:120],
            ntasks_per_node=max(1, gpus) if self.options.multi_node else 1,
            cpus_per_task=self._cpus_per_process or unit.cpus,
            gpus_per_node=gpus or None,
        )

    def _start(self, unit: Unit) -> Future[Outcome] | None:
        self._describe(unit)
        try:
            submitted = self._submitit.submit(in_job, unit)
        except Exception as error:
            message = _reason(str(error))
            busy = r"limit|timed out|[Uu]nable to contact|temporarily"
            if self._jobs and re.search(busy, message):
                return None  # try again when another job has ended
            raise UserError(f"sbatch refused {unit.name}: {message}") from error
        job = self._jobs[submitted.job_id] = _Job(submitted)
        return job.future

    def _poll(self) -> None:
        now, patience = time.monotonic(), 0 if self.closing else RESULT_SECONDS
        if self._jobs and now - self._queried > QUERY_SECONDS:
            self._queried = now
            self._update_states(_query_states(self._jobs), now)
        for number, job in list(self._jobs.items()):
            if job.ended_at:
                with suppress(OSError), os.scandir(job.submitted.paths.folder) as files:
                    list(files)  # makes NFS ask its server
            outcome = _outcome(job.submitted)
            if outcome is not None:
                self._finish_job(number, outcome)
            elif job.ended_at and now - job.ended_at > patience:
                reason = f"job {number} without a result: {job.final_state}{_last_line(job)}"
                self._finish_job(number, Outcome.failed(WorkerLost(reason)))

    def _update_states(self, states: Mapping[str, str], now: float) -> None:
        for number, job in self._jobs.items():
            state = states.get(number, FORGOTTEN)
            if state not in FINAL_STATES:
                job.ended_at = 0.0  # queued again
                continue
            job.ended_at = job.ended_at or now
            if state != FORGOTTEN:
                job.final_state = state

    def _finish_job(self, number: str, outcome: Outcome) -> None:
        job = self._jobs.pop(number)
        if outcome.kind != "done":
            # its other processes may still work, or SLURM may have queued it again by itself
            _output_of(["scancel", number])
        job.future.set_result(outcome)

    def _stop(self) -> None:
        if self._jobs:
            _output_of(["scancel", *self._jobs])


def in_job(unit: Unit) -> Outcome:
    """Run a unit in a process of a job; at the time limit (SIGUSR2) save and queue it again."""
    from submitit import JobEnvironment
    from submitit.helpers import TorchDistributedEnvironment

    job = JobEnvironment()
    job.paths.result_pickle.unlink(missing_ok=True)  # of the attempt before a requeue
    if job.num_tasks > 1:
        group = TorchDistributedEnvironment()
        # a job's processes are started on its first node, whose name may not be in the DNS
        group.master_addr = os.environ["SLURM_LAUNCH_NODE_IPADDR"]
        group.export(False, overwrite=True)  # each process still sees all GPUs of its node
    signals = (*STOP_SIGNALS, signal.SIGUSR2)
    if job.global_rank:
        return _assist(unit, job.global_rank, signals)
    outcome = execute(unit, signals)
    if outcome.signal == signal.SIGUSR2 and not _output_of(["scontrol", "requeue", job.job_id])[0]:
        os._exit(1)  # leaves no result, which would count as that of the job after the requeue
    return outcome


def _assist(unit: Unit, rank: int, signals: Sequence[int]) -> Outcome:
    """Run a unit beside the first process, which alone shows the progress and saves.

    Signals are ignored: the first process gets them too, and needs the others to end its step.
    """
    for number in signals:
        signal.signal(number, signal.SIG_IGN)
    folder = unit.folder / f"process{rank}"
    with suppress(OSError):  # ``execute`` reports a folder that is not visible
        folder.mkdir(exist_ok=True)
        (folder / unit.log_file.name).symlink_to(f"../{unit.log_file.name}")
    outcome = execute(replace(unit, folder=folder), ())
    if outcome.kind == "failed":
        with suppress(OSError), unit.log_file.open("a") as log:
            log.write(f"process {rank} failed: {outcome.error()!r:.300}\n")
        time.sleep(SAVE_SECONDS)  # perhaps the first one stopped: its outcome counts
    return outcome


def _outcome(job: Any) -> Outcome | None:
    """The first failure among a job's processes; the first one's result when all have ended."""
    from submitit.core.utils import pickle_load

    outcomes = []
    for number in range(job.num_tasks):
        path = job.task(number).paths.result_pickle
        if path.is_file():
            kind, value = pickle_load(path)
            if kind != "success":
                return Outcome.failed(RuntimeError(f"a job could not run its unit:\n{value}"))
            if value.kind != "done":
                return value
            outcomes.append(value)
    return outcomes[0] if len(outcomes) == job.num_tasks else None


def _reason(output: str) -> str:
    """The last line of ``sbatch`` itself in its output."""
    lines = output.strip().splitlines()
    return ([line for line in lines if "sbatch: " in line] or lines)[-1][:300]


def _last_line(job: _Job) -> str:
    with suppress(OSError, IndexError):
        output = job.submitted.paths.stdout.read_text(errors="replace")
        return f": {output.strip().splitlines()[-1][:300]}"
    return ""


def _query_states(jobs: Mapping[str, object]) -> dict[str, str]:
    """Job → state, for jobs that the controller remembers; UNKNOWN if it does not answer."""
    code, output = _output_of(["squeue", "-h", "-t", "all", "-o", "%i %T", "-j", ",".join(jobs)])
    if code and "Invalid job id" not in output:
        return dict.fromkeys(jobs, "UNKNOWN")
    return dict(line.split() for line in output.splitlines() if re.fullmatch(r"\S+ [A-Z_]+", line))


def _has_gpus(partition: str) -> bool:
    """Whether jobs get GPUs in a partition; '' is the default one, which ``sinfo`` marks by *."""
    choice = ["-p", partition] if partition else []
    lines = _output_of(["sinfo", "-h", "-o", "%P %G", *choice])[1].splitlines()
    return any("gpu" in line.split()[-1] and (partition or "* " in line) for line in lines)


def _output_of(command: list[str], content: str = "") -> tuple[int, str]:
    """Exit code and output of a command that reads ``content``; 1 and the reason if it cannot
    run."""
    try:
        done = subprocess.run(
            command,
            input=content,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=60,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return 1, str(error)
    return done.returncode, done.stdout
