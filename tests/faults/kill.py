"""kill -9 at random points, then the same command: identical results, every cell once, nothing
RUNNING.

``python -m tests.faults.kill --command run|sweep|label|train --executor local|slurm|ray`` (with
``--jobs 2 --points 20 --seed 0``) prints a line a point and a summary; exit 1 where one failed. ``train`` with ``--jobs 2`` is two processes
under torchrun. SLURM and Ray must be there (``SLURM_CONF``,
``pip install 'cliptex-benchmark[scale]'``).
"""  # noqa: E501

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

from backbones.checkpoint import read_checkpoint
from backbones.cliptex.labels.store import LabelStore
from reports.mlflow.client import Client
from tests.backbones.cliptex.experts import toy_experts
from tests.probes.datasets.make import make_camvid, make_imagefolder
from tests.servers import mlflow_server

RUN = shlex.split(
    "run --suite own --task camvid/linear,camvid/pspnet,imagefolder/linear --data-root . --device"
    " cpu --num-workers 1"
)
RUN += shlex.split(
    "--backbone random,efficientnet-lite0 --set max_iters=40 --set batch_size=2 --set size=32 --set"
    " epochs=2"
)
SWEEP = shlex.split(
    "sweep launch --suite smoke --task mini-class/zero-shot --device cpu --lambdas seg --values"
    " 1,10"
)
LABEL = shlex.split("labels predict --pairs pairs --device cpu --batch-size 4 --experts")
LABEL += [",".join(f"{name}=experts/{name}" for name in ("unet", "dpt", "nll-angmf"))]
TRAIN = shlex.split(
    "train --recipe cliptex --init random --pairs pairs --labels labels --device cpu"
    " --save-every 0.2"
)
TRAIN += shlex.split("--num-workers 1 --set model=tiny --set batch_size=16 --set epochs=40")
COMMANDS = {"run": RUN, "sweep": SWEEP, "label": LABEL, "train": TRAIN}
# what a worker's command line says, by executor; of one process of torchrun its own module
WORKERS = {"local": "multiprocessing.spawn", "slurm": "submitit.core._submit", "ray": "ray::"}
TORCHRUN = [
    "-m",
    "torch.distributed.run",
    "--standalone",
    "--nproc-per-node",
    "2",
    "-m",
    "benchmark",
]
RANK = "-m benchmark train"


class Faults:
    """One command on one executor, killed again and again."""

    def __init__(self, executor: str, folder: Path, uri: str, command: str, jobs: int) -> None:
        self.executor, self.folder, self.client = executor, folder, Client(uri)
        self.words, self.torchrun = COMMANDS[command], command == "train" and jobs > 1
        if not self.torchrun:
            self.words = [
                *self.words,
                "--executor",
                executor,
                *(["--jobs", str(jobs)] if executor != "ray" else []),
            ]
        root = str(Path(__file__).parents[2])
        self.environment = {
            **os.environ,
            "MLFLOW_TRACKING_URI": uri,
            "CLIPTEX_HOME": str(folder / "home"),
            "PYTHONPATH": root,
            "OMP_NUM_THREADS": "1",
        }

    def start(self, name: str) -> subprocess.Popen[bytes]:
        """The command, with results of its own, in a session of its own."""
        results = {
            "sweep": ["--study", name],
            "run": ["--json", f"{name}.json"],
            "labels": ["--out", name],
            "train": ["--out", f"{name}.safetensors"],
        }
        module = TORCHRUN if self.torchrun else ["-m", "benchmark"]
        command = [
            sys.executable,
            *module,
            *self.words,
            "--experiment",
            name,
            *results[self.words[0]],
        ]
        with (self.folder / f"{name}.log").open("ab") as log:
            return subprocess.Popen(
                command,
                cwd=self.folder,
                env=self.environment,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def whole(self, name: str) -> float:
        """Run it undisturbed; seconds."""
        started = time.monotonic()
        code = self.start(name).wait(900)
        assert code == 0, (self.folder / f"{name}.log").read_text()[-3000:]
        return time.monotonic() - started

    def results(self, name: str) -> object:
        """What the command ended with."""
        if self.words[0] == "run":
            return json.loads((self.folder / f"{name}.json").read_text())["backbones"]
        if self.words[0] == "train":
            return read_checkpoint(self.folder / f"{name}.safetensors").sha256
        if self.words[0] == "labels":
            tars = sorted((self.folder / name).glob("*.tar"))
            bytes_of = [hashlib.sha256(tar.read_bytes()).hexdigest() for tar in tars]
            return LabelStore(self.folder / name).identity, bytes_of
        import optuna

        study = optuna.load_study(study_name=name, storage=f"sqlite:///{self.folder}/sweeps.db")
        done = [
            trial for trial in study.get_trials() if trial.state == optuna.trial.TrialState.COMPLETE
        ]
        assert not [trial for trial in study.get_trials() if not trial.state.is_finished()], (
            "a trial is left RUNNING"
        )
        return sorted((sorted(trial.params.items()), trial.values) for trial in done)

    def point(self, name: str, after: float, victim: str) -> str:
        """Kill at a time, run again; what is wrong, or ''."""
        process = self.start(name)
        time.sleep(after)
        if victim == "worker" and (found := self.workers(process.pid)):
            random.choice(found).kill()
        elif process.poll() is None:
            os.kill(process.pid, signal.SIGKILL)
        process.wait(900)
        code = self.start(name).wait(900)
        if code:
            return f"exit code {code}: {(self.folder / f'{name}.log').read_text()[-400:]}"
        return self.wrong(name)

    def workers(self, driver: int) -> list[psutil.Process]:
        """Workers under way, of this command alone."""
        found = []
        sign = RANK if self.torchrun else WORKERS[self.executor]
        for process in psutil.process_iter(["pid", "cmdline", "environ"]):
            words = " ".join(process.info["cmdline"] or [])
            ours = (process.info["environ"] or {}).get("CLIPTEX_HOME") == str(self.folder / "home")
            if (
                sign in words
                and "IDLE" not in words
                and process.pid != driver
                and (ours or self.executor == "ray")
            ):
                found.append(process)
        return found

    def wrong(self, name: str) -> str:
        """What of a finished command is not as that of an undisturbed one."""
        if self.results(name) != self.results("whole"):
            return "other results"
        runs = self.client.search_runs([self.client.get_experiment_by_name(name).experiment_id])
        # a process whose peer was killed fails, and says that the connection is gone
        ended = {"FINISHED", "KILLED", *(["FAILED"] if self.torchrun else [])}
        if left := [run.info.run_name for run in runs if run.info.status not in ended]:
            return f"not ended: {left}"
        cells = Counter(
            run.data.tags["cell"]
            for run in runs
            if "cell" in run.data.tags and run.info.status == "FINISHED"
        )
        return f"finished twice: {cells}" if set(cells.values()) - {1} else ""


def make_inputs(command: str, folder: Path) -> None:
    """The data that a command reads, into ``folder``."""
    if command == "run":
        make_camvid(folder / "camvid", n_train=6, n_val=4)
        make_imagefolder(folder / "imagefolder", n_train=8, n_val=4)
    elif command in ("label", "train"):
        toy_experts.write_shards(folder / "pairs", 6, 16)
        for expert in toy_experts.all_experts():
            expert.save(folder / "experts" / expert.name)


def kill(executor: str, command: str, jobs: int, count: int) -> Iterator[tuple[str, str]]:
    """So many points of one command on one executor: what was done, and what was wrong of it or
    ''."""
    with tempfile.TemporaryDirectory() as scratch, mlflow_server(Path(scratch)) as uri:
        folder = Path(scratch)
        make_inputs(command, folder)
        if command == "train":
            Faults("local", folder, uri, "label", 1).whole("labels")
        faults = Faults(executor, folder, uri, command, jobs)
        seconds = faults.whole("whole")
        print(f"{command} undisturbed: {seconds:.0f} s", flush=True)
        for number in range(count):
            after, victim = random.uniform(1.0, seconds), ("driver", "worker")[number % 2]
            wrong = faults.point(f"point{number}", after, victim)
            yield f"{command} on {executor} · {victim} after {after:.1f} s", wrong


def points(_whole: object, _folder: Path, count: int, number: int) -> Iterator[tuple[str, str]]:
    """All commands, on this machine."""
    random.seed(number)
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
    for what, wrong in kill(options.executor, options.command, options.jobs, options.points):
        failures += bool(wrong)
        print(f"{what} · {wrong or 'as undisturbed'}", flush=True)
    print(
        f"{options.executor} · {options.command} · {options.jobs} processes: {options.points}"
        f" points, {failures} failures"
    )
    return 1 if failures else 0


if __name__ == "__main__":
    raise SystemExit(main())
