"""A folder with small data, labels, weights and a finished run, in which commands are run and
judged."""

from __future__ import annotations

import json
import os
import resource
import shlex
import shutil
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.backbones.cliptex.experts import toy_experts
from tests.forks import Fork, command
from tests.probes.datasets.make import make_camvid, make_coco, make_imagefolder

ALONE = shlex.split("--device cpu --jobs 1 --num-workers 0")
RUN = [
    *shlex.split("run --suite own --task camvid/linear,imagefolder/linear --data-root ."),
    *ALONE,
]
RUN += shlex.split(
    "--set max_iters=3 --set batch_size=2 --set size=32 --set channels=8 --set epochs=1"
)
RANDOM = [*RUN, "--backbone", "random"]
LABEL = [*shlex.split("labels predict --pairs pairs --batch-size 4"), *ALONE, "--experts"]
LABEL += [",".join(f"{name}=experts/{name}" for name in ("unet", "dpt", "nll-angmf"))]
TRAIN = [*shlex.split("train --recipe cliptex --init random --pairs pairs --labels labels"), *ALONE]
TRAIN += shlex.split("--set model=tiny --set batch_size=4 --set epochs=1")
REPORT = ["report", "--experiment", "own", "--out", "page"]
REMOVED = None  # of a variable of the environment
# what of a scratch copy is no result of a command; TMPDIR may keep what processes lock, and caches
# of libraries
TEMPORARY = (".*.tmp", "*.part", "*.partial")
Point = tuple[str, str]  # what was done; what was wrong of it, or ''


@dataclass(frozen=True)
class Ended:
    """A command that has ended, with what it said; the code of one that hangs is None."""

    code: int | None
    out: str
    errors: str

    def wrong(self, codes: Sequence[int] = (0, 1, 2)) -> str:
        """What of its end is not as it must be of any command."""
        last = f"{self.out[-300:]} | {self.errors[-900:]}"
        if self.code is None:
            return f"hangs: {last}"
        if "Traceback (most recent call last)" in self.out + self.errors:
            return f"a traceback (exit code {self.code}): {last}"
        if self.code not in codes:
            return f"exit code {self.code}: {last}"
        if self.code == 2 and (
            self.errors.count("\n") != 1 or not self.errors.startswith("error: ")
        ):
            return f"exit code 2 with other than one line: {last}"
        return ""


class Place:
    """See above; ``variables`` are of the environment of its commands."""

    def __init__(self, folder: Path, variables: Mapping[str, Any] | None = None) -> None:
        self.folder, self.number = folder, 0
        self.variables: dict[str, Any] = {
            "MLFLOW_TRACKING_URI": REMOVED,
            "CLIPTEX_HOME": str(folder / "home"),
            "TMPDIR": str(folder / "tmp"),
            "HOME": str(folder / "user"),
            "MLFLOW_DISABLE_TELEMETRY": "true",
            "HF_HUB_OFFLINE": "1",
            "PYTHONPATH": str(Path(__file__).parents[2]),
            **(variables or {}),
        }

    @classmethod
    def make(cls, folder: Path) -> Place:
        """The undisturbed one, which others are copies of."""
        place = cls(folder)
        for name in ("tmp", "user"):
            (folder / name).mkdir(parents=True)
        make_camvid(folder / "camvid", n_train=4, n_val=3)
        make_imagefolder(folder / "imagefolder", n_train=8, n_val=4)
        make_coco(folder / "coco")
        toy_experts.write_shards(folder / "pairs", 2, 4)
        for expert in toy_experts.all_experts():
            expert.save(folder / "experts" / expert.name)
        makers = (
            [*LABEL, "--out", "labels"],
            [*TRAIN, "--out", "w.safetensors"],
            [*RANDOM, "--json", "whole.json"],
        )
        for words in makers:
            ended = place.run(words, seconds=600)
            assert not ended.wrong(codes=(0,)), ended.wrong(codes=(0,))
        return place

    def copy(self, folder: Path, **variables: Any) -> Place:
        """One to be disturbed; its MLflow store names its own artifacts."""
        said = shutil.ignore_patterns("said*")
        shutil.copytree(self.folder, folder, symlinks=True, dirs_exist_ok=True, ignore=said)
        with closing(sqlite3.connect(folder / "mlflow.db")) as store, store:
            for table, column in (
                ("experiments", "artifact_location"),
                ("runs", "artifact_uri"),
                ("logged_models", "artifact_location"),
            ):
                store.execute(
                    f"update {table} set {column} = replace({column}, ?, ?)",
                    (str(self.folder), str(folder)),
                )
        return Place(folder, variables)

    def start(self, words: Sequence[str], **how: Any) -> Fork:
        """A command in a process that has imported everything; ``how``: see ``_go``."""
        self.number += 1
        stem = self.folder / f"said{self.number}"
        return Fork(
            _go, self.variables, str(self.folder), f"{stem}.err", how, list(words), output=stem
        )

    def end(self, fork: Fork, seconds: float = 180.0) -> Ended:
        """Wait for it; one that hangs is killed."""
        try:
            code = fork.end(seconds)
        except AssertionError:
            code = None
            fork.process.kill()
            with suppress(ProcessLookupError):  # it is not yet, or no more, a session of its own
                os.killpg(fork.process.pid, 9)
            fork.process.join()
        errors = Path(f"{fork.output}.err")
        return Ended(
            code, fork.said(), errors.read_text(errors="replace") if errors.exists() else ""
        )

    def run(self, words: Sequence[str], seconds: float = 180.0, **how: Any) -> Ended:
        """Start and end."""
        return self.end(self.start(words, **how), seconds)

    def run_fresh(self, words: Sequence[str], seconds: float = 300.0, **how: Any) -> Ended:
        """As ``run``, in a Python of its own: for what is settled when that starts."""
        environment = {
            k: v for k, v in {**os.environ, **self.variables}.items() if v is not REMOVED
        }
        try:
            ended = subprocess.run(
                [sys.executable, "-m", "benchmark", *words],
                cwd=self.folder,
                env=environment,
                capture_output=True,
                timeout=seconds,
                **how,
            )
        except subprocess.TimeoutExpired as late:
            return Ended(None, str(late.stdout), str(late.stderr))
        return Ended(
            ended.returncode,
            *(each.decode(errors="replace") for each in (ended.stdout, ended.stderr)),
        )

    def metrics(self, name: str = "whole.json") -> Any:
        """Of a run's ``--json``."""
        return json.loads((self.folder / name).read_text())["backbones"]

    def finished(self) -> list[tuple[str, str]]:
        """(experiment, cell) of each finished run in its own store."""
        query = (
            "select r.experiment_id, t.value from runs r join tags t using (run_uuid) where t.key ="
            " 'cliptex.cell'"
        )
        with closing(sqlite3.connect(self.folder / "mlflow.db")) as store:
            return store.execute(f"{query} and r.status = 'FINISHED'").fetchall()

    def left(self) -> str:
        """What commands that have ended should not have left, or ''."""
        if (self.folder / "hacked").exists():
            return "code of an argument was run"
        with closing(sqlite3.connect(self.folder / "mlflow.db")) as store:
            if running := store.execute(
                "select name from runs where status in ('RUNNING', 'SCHEDULED')"
            ).fetchall():
                return f"left running: {running}"
        if len(set(found := self.finished())) < len(found):
            return f"finished twice: {found}"
        files = [path for pattern in TEMPORARY for path in self.folder.rglob(pattern)]
        scratch = [
            path
            for path in (self.folder / "tmp").rglob("*")
            if path.is_file() and path.suffix != ".lock"
        ]
        return (
            f"left on disk: {[str(path.relative_to(self.folder)) for path in files + scratch]}"
            if files + scratch
            else ""
        )

    def differs(self, whole: Place, words: Sequence[str] = RANDOM, name: str = "after.json") -> str:
        """The undisturbed command, now that nothing disturbs it: how its end or its metrics differ,
        or ''."""
        ended = self.run([*words, "--json", name])
        if wrong := ended.wrong(codes=(0,)):
            return f"afterwards: {wrong}"
        return "" if self.metrics(name) == whole.metrics() else "afterwards: other metrics"


def _go(
    variables: Mapping[str, Any],
    folder: str,
    errors: str,
    how: Mapping[str, Any],
    words: Sequence[str],
) -> None:
    """The command in a fork. ``how``: ``umask``, ``largest`` (bytes of a file), ``open_files``,
    ``clock`` (seconds that it is set by after a second)."""
    for name, value in variables.items():
        os.environ.pop(name, None) if value is REMOVED else os.environ.__setitem__(name, value)
    os.chdir(folder)
    os.dup2(os.open(errors, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666), 2)
    tempfile.tempdir = None  # asked for again
    os.umask(how.get("umask", 0o022))
    for limit, most in (
        (resource.RLIMIT_FSIZE, how.get("largest")),
        (resource.RLIMIT_NOFILE, how.get("open_files")),
    ):
        if most is not None:
            resource.setrlimit(limit, (most, most))
    if "clock" in how:
        true, began = time.time, time.time()
        time.time = lambda: (now := true()) + how["clock"] * (now > began + 1)
    command(*words)


def copies(whole: Place, folder: Path) -> Iterator[Place]:
    """One fresh copy after the other; each goes when the next is asked for."""
    for number in range(10**9):
        place = whole.copy(folder / str(number))
        yield place
        shutil.rmtree(place.folder, ignore_errors=True)
