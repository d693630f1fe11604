"""``kill``: ``kill -9`` at random points, then the same command again.

Results must be identical, every cell finished once and nothing left RUNNING.
``python -m tests.faults.kill --command run --executor local --jobs 2 --points 20 --seed 0`` prints
a line for each point; the exit code is 1 where one failed. ``train`` with ``--jobs 2`` is two
processes under torchrun. ``--executor slurm`` and ``ray`` need a cluster (``SLURM_CONF``) and
``pip install -e '.[scale]'``.
"""

from __future__ import annotations

import argparse
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
from backbones.cliptex.labels.store import LabelStore
from reports.mlflow.client import Client
from tests.backbones.cliptex.experts import toy_experts
from tests.faults.sandbox import EXPERTS, Outcome
from tests.probes.datasets.make import make_camvid, make_imagefolder
from tests.servers import mlflow_server

COMMANDS = {
    "run": shlex.split(
        "run --suite own --task camvid/linear,camvid/pspnet,imagefolder/linear --data-root ."
        " --backbone random,efficientnet-lite0 --device cpu --num-workers 1"
        " --set max_iters=40 --set batch_size=2 --set size=32 --set epochs=2"
    ),
    "sweep": shlex.split(
        "sweep launch --suite smoke --task mini-class/zero-shot --device cpu --lambdas seg"
        " --values 1,10"
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
    "sweep": ["--study", "{}"],
    "label": ["--out", "{}"],
    "train": ["--out", "{}.safetensors"],
}
# words in the command line of an executor's worker, and of a process of torchrun
WORKERS = {"local": "multiprocessing.spawn", "slurm": "submitit.core._submit", "ray": "ray::"}
TORCHRUN = shlex.split("-m torch.distributed.run --standalone --nproc-per-node 2 -m benchmark")
RANK = "-m benchmark train"


class KilledCommand:
    """One command on one executor, killed again and again."""

    def __init__(self, executor: str, folder: Path, uri: str, command: str, jobs: int) -> None:
        self.executor, self.folder, self.client = executor, folder, Client(uri)
        self.command, self.torchrun = command, command == "train" and jobs > 1
        self.words = list(COMMANDS[command])
        if not self.torchrun:
            self.words += ["--executor", executor]
            self.words += ["--jobs", str(jobs)] if executor != "ray" else []
        self.environment = {
            **os.environ,
            "MLFLOW_TRACKING_URI": uri,
            "CLIPTEX_HOME": str(folder / "home"),
            "PYTHONPATH": str(Path(__file__).parents[2]),
            "OMP_NUM_THREADS": "1",
        }

    def start(self, name: str) -> subprocess.Popen[bytes]:
        """The command in its own session, with its own experiment and results."""
        module = TORCHRUN if self.torchrun else ["-m", "benchmark"]
        output = [word.format(name) for word in OUTPUT[self.command]]
        words = [sys.executable, *module, *self.words, "--experiment", name, *output]
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
        if self.command == "run":
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
        marker = RANK if self.torchrun else WORKERS[self.executor]
        for process in psutil.process_iter(["pid", "cmdline", "environ"]):
            words = " ".join(process.info["cmdline"] or [])
            home = (process.info["environ"] or {}).get("CLIPTEX_HOME")
            ours = home == str(self.folder / "home") or self.executor == "ray"
            if marker in words and "IDLE" not in words and process.pid != driver and ours:
                workers.append(process)
        return workers

    def error(self, name: str) -> str:
        """How a finished command differs from an undisturbed one, or ''."""
        if self.results(name) != self.results("undisturbed"):
            return "other results"
        runs = self.client.search_runs([self.client.get_experiment_by_name(name).experiment_id])
        # a process of torchrun whose peer was killed fails: its connection is gone
        allowed = {"FINISHED", "KILLED", *(["FAILED"] if self.torchrun else [])}
        pending = [run.info.run_name for run in runs if run.info.status not in allowed]
        if pending:
            return f"not ended: {pending}"
        finished = [run for run in runs if run.info.status == "FINISHED"]
        cells = Counter(run.data.tags["cell"] for run in finished if "cell" in run.data.tags)
        return f"finished twice: {cells}" if set(cells.values()) - {1} else ""


def make_inputs(command: str, folder: Path) -> None:
    """Write the data that a command reads into ``folder``."""
    if command == "run":
        make_camvid(folder / "camvid", n_train=6, n_val=4)
        make_imagefolder(folder / "imagefolder", n_train=8, n_val=4)
    elif command in ("label", "train"):
        toy_experts.write_shards(folder / "pairs", 6, 16)
        for expert in toy_experts.all_experts():
            expert.save(folder / "experts" / expert.name)


def kill(executor: str, command: str, jobs: int, count: int) -> Iterator[Outcome]:
    """Kill one command on one executor ``count`` times."""
    with tempfile.TemporaryDirectory() as scratch, mlflow_server(Path(scratch)) as uri:
        folder = Path(scratch)
        make_inputs(command, folder)
        if command == "train":
            KilledCommand("local", folder, uri, "label", 1).run_undisturbed("labels")
        killed = KilledCommand(executor, folder, uri, command, jobs)
        seconds = killed.run_undisturbed("undisturbed")
        print(f"{command} undisturbed: {seconds:.0f} s", flush=True)
        for number in range(count):
            after, victim = random.uniform(1.0, seconds), ("driver", "worker")[number % 2]
            error = killed.point(f"point{number}", after, victim)
            yield f"{command} on {executor} · {victim} after {after:.1f} s", error


def points(_undisturbed: object, _folder: Path, count: int, seed: int) -> Iterator[Outcome]:
    """All commands on this machine."""
    random.seed(seed)
    for command in COMMANDS:
        yield from kill("local", command, 2, max(1, count // len(COMMANDS)))


def main() -> int:
    """All points of one command."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--executor", default="local", choices=WORKERS)
    parser.add_argument("--command", default="run", choices=COMMANDS)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--points", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    random.seed(options.seed)
    failures = 0
    for name, error in kill(options.executor, options.command, options.jobs, options.points):
        failures += bool(error)
        print(f"{name} · {error or 'as undisturbed'}", flush=True)
    print(f"{options.points} points, {failures} failures")
    return 1 if failures else 0


if __name__ == "__main__":
    raise SystemExit(main())
