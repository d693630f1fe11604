"""``kill``: ``kill -9`` at random points, then the same command again.

Results must be identical, every cell finished once and nothing left RUNNING. ``train`` is two
processes under torchrun.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import psutil

from backbones.checkpoint import load_checkpoint
from backbones.cliptex.labels import LabelStore
from reports.report import ReportRequest, build_report
from reports.store import open_mlflow
from tests.faults.sandbox import EXPERTS, Outcome, make_inputs
from tests.servers import mlflow_server

CELL = "cliptex.cell"  # the tag
COMMANDS = {
    "run": shlex.split(
        "run --suite own --task camvid/linear,camvid/pspnet,imagefolder/linear --data-root ."
        " --backbone random,efficientnet-lite0 --device cpu --num-workers 1"
        " --set max_iters=40 --set batch_size=2 --set size=32 --set epochs=2"
    ),
    "tune": shlex.split(
        "run --suite own --task camvid/linear,imagefolder/linear --data-root . --backbone random"
        " --device cpu --num-workers 1 --set tune=blocks:1 --set tune_rates=0.001 --set ema=0.9"
        " --set max_iters=40 --set batch_size=2 --set size=32 --set epochs=5"
    ),
    "sweep": shlex.split(
        "sweep launch --suite smoke --task mini-class/zero-shot --device cpu --vary lambda_seg=1,10"
    ),
    "label": shlex.split(
        f"labels predict --pairs pairs --device cpu --batch-size 4 --experts {EXPERTS}"
    ),
    "train": shlex.split(
        "train --recipe cliptex --init random --pairs pairs --labels labels --device cpu"
        " --save-every 0.2 --num-workers 1 --set model=tiny --set batch_size=16 --set epochs=40"
    ),
}
OUTPUT = {
    "run": ["--json", "{}.json"],
    "tune": ["--json", "{}.json"],
    "sweep": ["--study", "{}"],
    "label": ["--out", "{}"],
    "train": ["--out", "{}.safetensors"],
}
TORCHRUN = shlex.split("-m torch.distributed.run --standalone --nproc-per-node 2 -m benchmark")


class KilledCommand:
    """One command, killed again and again."""

    def __init__(self, folder: Path, uri: str, command: str) -> None:
        self.folder, self.client, self.command = folder, open_mlflow(uri), command
        self.torchrun = command == "train"
        self.words = [*TORCHRUN, *COMMANDS[command]]
        # in the command line of a worker, and of a process of torchrun
        self.marker = "-m benchmark train"
        if not self.torchrun:
            self.words = ["-m", "benchmark", *COMMANDS[command], "--jobs", "2"]
            self.marker = "multiprocessing.forkserver"
        self.environment = {
            **os.environ,
            "MLFLOW_TRACKING_URI": uri,
            "CLIPTEX_HOME": str(folder / "home"),
            "PYTHONPATH": str(Path(__file__).parents[2]),
            "OMP_NUM_THREADS": "1",
        }

    def start(self, name: str) -> subprocess.Popen[bytes]:
        """The command in its own session, with its own experiment and results."""
        output = [word.format(name) for word in OUTPUT[self.command]]
        words = [sys.executable, *self.words, "--experiment", name, *output]
        with (self.folder / f"{name}.log").open("ab") as log:
            return subprocess.Popen(
                words,
                cwd=self.folder,
                env=self.environment,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def run_undisturbed(self, name: str) -> float:
        """Run it to its end; seconds."""
        started = time.monotonic()
        code = self.start(name).wait(900)
        assert code == 0, (self.folder / f"{name}.log").read_text()[-3000:]
        return time.monotonic() - started

    def results(self, name: str) -> object:
        """What the command produced."""
        if self.command in ("run", "tune"):
            return json.loads((self.folder / f"{name}.json").read_text())["backbones"]
        if self.command == "train":
            return load_checkpoint(self.folder / f"{name}.safetensors").sha256
        if self.command == "label":
            tars = sorted((self.folder / name).glob("*.tar"))
            hashes = [hashlib.sha256(tar.read_bytes()).hexdigest() for tar in tars]
            return LabelStore(self.folder / name).identity, hashes
        import optuna

        study = optuna.load_study(study_name=name, storage=f"sqlite:///{self.folder}/sweeps.db")
        trials = study.get_trials()
        assert all(trial.state.is_finished() for trial in trials), "a trial is left RUNNING"
        complete = [trial for trial in trials if trial.state.name == "COMPLETE"]
        return sorted((sorted(trial.params.items()), trial.values) for trial in complete)

    def point(self, name: str, after: float, victim: str) -> str:
        """Kill after so many seconds and run again; what is wrong then, or ''."""
        process = self.start(name)
        time.sleep(after)
        workers = self.workers(process.pid) if victim == "worker" else []
        if workers:
            random.choice(workers).kill()
        elif process.poll() is None:
            os.kill(process.pid, signal.SIGKILL)
        process.wait(900)
        code = self.start(name).wait(900)
        if code:
            return f"exit code {code}: {(self.folder / f'{name}.log').read_text()[-400:]}"
        return self.error(name)

    def workers(self, driver: int) -> list[psutil.Process]:
        """Running workers of this command alone."""
        workers = []
        for process in psutil.process_iter(["pid", "cmdline", "environ"]):
            words = " ".join(process.info["cmdline"] or [])
            home = (process.info["environ"] or {}).get("CLIPTEX_HOME")
            if self.marker in words and process.pid != driver and home == str(self.folder / "home"):
                workers.append(process)
        return workers

    def error(self, name: str) -> str:
        """How a finished command differs from an undisturbed one, or ''."""
        if self.results(name) != self.results("undisturbed"):
            return "other results"
        if self.command in ("run", "tune"):  # the scores of images give back the metrics
            request = ReportRequest(
                experiments=[name], tracking_uri=self.environment["MLFLOW_TRACKING_URI"]
            )
            analysis = build_report(request).analysis
            if analysis is None or analysis.inconsistent:
                return "scores of images that do not reproduce the metrics"
        runs = self.client.search_runs([self.client.get_experiment_by_name(name).experiment_id])
        # a process of torchrun whose peer was killed fails: its connection is gone
        allowed = {"FINISHED", "KILLED", *(["FAILED"] if self.torchrun else [])}
        pending = [run.info.run_name for run in runs if run.info.status not in allowed]
        if pending:
            return f"not ended: {pending}"
        finished = [run for run in runs if run.info.status == "FINISHED"]
        cells = Counter(run.data.tags[CELL] for run in finished if CELL in run.data.tags)
        return f"finished twice: {cells}" if set(cells.values()) - {1} else ""


def kill(command: str, count: int) -> Iterator[Outcome]:
    """Kill one command ``count`` times."""
    with tempfile.TemporaryDirectory() as scratch, mlflow_server(Path(scratch)) as uri:
        folder = Path(scratch)
        make_inputs(folder, images=6, pairs=16, shards=6)
        if command == "train":
            KilledCommand(folder, uri, "label").run_undisturbed("labels")
        killed = KilledCommand(folder, uri, command)
        seconds = killed.run_undisturbed("undisturbed")
        print(f"{command} undisturbed: {seconds:.0f} s", flush=True)
        for number in range(count):
            after, victim = random.uniform(1.0, seconds), ("driver", "worker")[number % 2]
            yield (
                f"{command} · {victim} after {after:.1f} s",
                killed.point(f"point{number}", after, victim),
            )


def points(_undisturbed: object, _folder: Path, count: int, seed: int) -> Iterator[Outcome]:
    """All commands in turn."""
    random.seed(seed)
    for command in COMMANDS:
        yield from kill(command, max(1, count // len(COMMANDS)))
