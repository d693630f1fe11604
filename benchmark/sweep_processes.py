"""Worker processes of ``sweep launch``: started with their share of the cores, replaced when killed, stopped."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from backbones.files import home
from benchmark.execution.progress import Bar, console
from benchmark.evaluation.sweep_bench import Machine, threads_for
from reports.tracking import Tracker
from sweeps.cells import progress
from sweeps.errors import SweepError
from sweeps.study import Sweep
from sweeps.summary import trial_rows

RESTARTS = 3  # worker processes that die (killed, out of memory) are replaced this often in all


@dataclass(frozen=True)
class Workers:
    """What the processes of one launched sweep share.

    Attributes:
        sweep: the open study; ``storage`` is its address with the password, if any.
        tracker: where runs go.
        machine: device and loading processes of each.
        count: how many share this machine's cores.
    """

    sweep: Sweep
    storage: str
    tracker: Tracker
    machine: Machine
    count: int

    def start(self, number: int, *extra: str) -> subprocess.Popen:
        """Worker ``number``, from 0.

        It gets a session of its own, so that Ctrl-C in a terminal reaches it once: through us.
        """
        command = [sys.executable, "-m", "benchmark", "sweep", "worker", *extra]
        command += ["--study", self.sweep.name, "--storage", self.storage, "--follow", str(os.getpid())]
        command += ["--device", self.machine.device, "--loaders", str(self.machine.loaders)]
        share = str(threads_for(self.count))
        threads = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), share)
        environment = {**os.environ, **threads, "MLFLOW_TRACKING_URI": self.tracker.uri}
        path = self.log_file(number)
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a") as log:
            return subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment, start_new_session=True
            )

    def log_file(self, number: int) -> Path:
        """Where a worker's output goes."""
        return home() / "sweeps" / self.sweep.name.replace("/", "_") / f"worker-{number + 1}.log"

    def last_line(self, number: int) -> str:
        """What a worker said last."""
        path = self.log_file(number)
        text = path.read_text(errors="replace") if path.is_file() else ""
        lines = [line for line in text.splitlines() if line.strip()]
        return lines[-1][:300] if lines else f"(nothing in {path})"


def share_cells(workers: Workers, bar: Bar) -> None:
    """Run worker processes until every cell is finished, or none of them is left.

    Raises:
        SweepError: the last of them ended with something that the user must mend.
    """
    sweep = workers.sweep
    processes = {number: workers.start(number) for number in range(min(workers.count, progress(sweep).left))}
    restarts, told = 0, {trial.number for trial in sweep.trials() if trial.state.is_finished()}
    bar.start(f"sweep {sweep.name}", len(sweep.space.cells()))
    shown = 0
    try:
        while processes:
            time.sleep(0.5)
            shown = _tell_news(sweep, told, bar, shown)
            for number, process in list(processes.items()):
                code = process.poll()
                if code is None:
                    continue
                del processes[number]
                if code == 0:
                    continue
                line = workers.last_line(number)
                if code < 0 and restarts < RESTARTS and progress(sweep).left:
                    restarts += 1
                    console.print(
                        f"worker {number + 1} was killed (signal {-code}); another takes its place", style="yellow"
                    )
                    processes[number] = workers.start(number)
                elif code == 2 and not processes:
                    raise SweepError(line.removeprefix("error: "))
                else:
                    console.print(f"worker {number + 1} ended with code {code}: {line}", style="yellow", markup=False)
        _tell_news(sweep, told, bar, shown)
    finally:
        _stop(processes.values())


def measure_seeds(workers: Workers, seeds: Sequence[int], bar: Bar) -> None:
    """The reference cell with each of ``seeds``, in as many processes as there are workers."""
    bar.start("noise: further seeds", len(seeds))
    waiting = list(seeds)
    running: dict[int, subprocess.Popen] = {}
    try:
        while waiting or running:
            while waiting and len(running) < workers.count:
                seed = waiting.pop(0)
                running[seed] = workers.start(100 + seed, "--base-seed", str(seed))
            time.sleep(0.5)
            for seed, process in list(running.items()):
                if process.poll() is None:
                    continue
                del running[seed]
                bar.advance()
                if process.returncode:
                    line = workers.last_line(100 + seed)
                    console.print(f"seed {seed} was not measured: {line}", style="yellow", markup=False)
    finally:
        _stop(running.values())


def _stop(processes: Iterable[subprocess.Popen]) -> None:
    """Ask workers to stop (each gives its trial back), and wait; kill those that do not within a minute."""
    left = [process for process in processes if process.poll() is None]
    for process in left:
        process.send_signal(signal.SIGTERM)
    for process in left:
        try:
            process.wait(60)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _tell_news(sweep: Sweep, told: set[int], bar: Bar, shown: int) -> int:
    """Print trials that ended since, move the bar; returns the number of finished cells."""
    for row in trial_rows(sweep):
        if row["state"] in ("COMPLETE", "PRUNED", "FAIL") and row["number"] not in told:
            told.add(row["number"])
            values = ", ".join(f"{o.label} {v:+.3g}" for o, v in zip(sweep.objectives, row["values"], strict=False))
            what = values or row["reason"] or row["state"].lower()
            console.print(f"  trial {row['number']} · {row['cell']} · {what} · {row['seconds']:.0f} s", markup=False)
    done = progress(sweep).done
    if done > shown:
        bar.advance(done - shown)
    return done
