"""A folder with small data, labels, weights and a finished run, in which commands are disturbed."""

from __future__ import annotations

import json
import os
import resource
import shlex
import shutil
import sqlite3
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.backbones.cliptex.experts import toy_experts
from tests.forks import Fork, command
from tests.probes.datasets.make import make_camvid, make_imagefolder

CPU = " --device cpu --jobs 1 --num-workers 0"
RUN = shlex.split(
    "run --suite own --task camvid/linear,imagefolder/linear --data-root . --backbone random"
    " --set max_iters=3 --set batch_size=2 --set size=32 --set channels=8 --set epochs=1" + CPU
)
RUN_AGAIN = [*RUN, "--experiment", "again", "--json", "after.json"]
EXPERTS = ",".join(f"{name}=experts/{name}" for name in ("unet-seg", "unet-depth", "unet-normals"))
LABEL = shlex.split(f"labels predict --pairs pairs --batch-size 4 --experts {EXPERTS}" + CPU)
TRAIN = shlex.split(
    "train --recipe cliptex --init random --pairs pairs --labels labels"
    " --set model=tiny --set batch_size=4 --set epochs=1" + CPU
)
REPORT = ["report", "--experiment", "own", "--out", "page"]
TEMPORARY = (".*.tmp", "*.part", "*.partial")
Outcome = tuple[str, str]  # what was done; what was wrong afterwards, or ''


def make_inputs(folder: Path, images: int, pairs: int, shards: int = 2) -> None:
    """Write the data that the commands read."""
    make_camvid(folder / "camvid", n_train=images, n_val=3)
    make_imagefolder(folder / "imagefolder", n_train=8, n_val=4)
    toy_experts.write_shards(folder / "pairs", shards, pairs)
    for expert in toy_experts.all_experts():
        expert.save(folder / "experts" / expert.name)


@dataclass(frozen=True)
class Result:
    """A finished command; ``code`` is None for one that hung."""

    code: int | None
    output: str
    errors: str

    def error(self, codes: Sequence[int] = (0, 1, 2)) -> str:
        """What no command may end with, or ''."""
        tail = f"{self.output[-300:]} | {self.errors[-900:]}"
        if self.code is None:
            return f"hangs: {tail}"
        if "Traceback (most recent call last)" in self.output + self.errors:
            return f"a traceback (exit code {self.code}): {tail}"
        if self.code not in codes:
            return f"exit code {self.code}: {tail}"
        one_line = self.errors.count("\n") == 1 and self.errors.startswith("error: ")
        if self.code == 2 and not one_line:
            return f"exit code 2 without exactly one line of error: {tail}"
        return ""


class Sandbox:
    """See above; ``variables`` are of the environment of its commands."""

    def __init__(self, folder: Path, variables: Mapping[str, str] | None = None) -> None:
        self.folder, self.number = folder, 0
        self.variables = {
            "CLIPTEX_HOME": str(folder / "home"),
            "TMPDIR": str(folder / "tmp"),
            "HOME": str(folder / "user"),
            "MLFLOW_DISABLE_TELEMETRY": "true",
            "HF_HUB_OFFLINE": "1",
            "PYTHONPATH": str(Path(__file__).parents[2]),
            **(variables or {}),
        }

    @classmethod
    def make(cls, folder: Path) -> Sandbox:
        """The undisturbed one, which others are copies of."""
        sandbox = cls(folder)
        for name in ("tmp", "user"):
            (folder / name).mkdir(parents=True)
        make_inputs(folder, images=4, pairs=4)
        for words in (
            [*LABEL, "--out", "labels"],
            [*TRAIN, "--out", "w.safetensors"],
            [*RUN, "--json", "undisturbed.json"],
        ):
            error = sandbox.run(words, seconds=600).error(codes=(0,))
            assert not error, error
        return sandbox

    def copy(self, folder: Path, **variables: str) -> Sandbox:
        """A copy to disturb; its MLflow store refers to its own artifacts."""
        shutil.copytree(
            self.folder, folder, dirs_exist_ok=True, ignore=shutil.ignore_patterns("output*")
        )
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
        return Sandbox(folder, variables)

    def start(self, words: Sequence[str], largest_file: int | None = None) -> Fork:
        """A command in a process that has imported everything.

        Args:
            largest_file: bytes that a file may have, as on a disk that is full.
        """
        self.number += 1
        stem = self.folder / f"output{self.number}"
        arguments = (self.variables, str(self.folder), f"{stem}.err", largest_file, list(words))
        return Fork(_run_command, *arguments, output=stem)

    def wait(self, fork: Fork, seconds: float = 180.0) -> Result:
        """The result of a started command; one that hangs is killed."""
        code = None
        try:
            code = fork.end(seconds)
        except AssertionError:
            fork.process.kill()
            with suppress(ProcessLookupError):
                os.killpg(fork.process.pid, 9)
            fork.process.join()
        errors = Path(f"{fork.output}.err")
        text = errors.read_text(errors="replace") if errors.exists() else ""
        return Result(code, fork.text(), text)

    def run(
        self, words: Sequence[str], seconds: float = 180.0, largest_file: int | None = None
    ) -> Result:
        """Start a command and wait for its end."""
        return self.wait(self.start(words, largest_file), seconds)

    def metrics(self, name: str = "undisturbed.json") -> Any:
        """The metrics in the ``--json`` file of a run."""
        return json.loads((self.folder / name).read_text())["backbones"]

    def leftovers(self) -> str:
        """What finished commands must not leave behind, or ''."""
        with closing(sqlite3.connect(self.folder / "mlflow.db")) as store:
            running = store.execute("select name from runs where status = 'RUNNING'").fetchall()
            cells = store.execute(
                "select r.experiment_id, t.value from runs r join tags t using (run_uuid)"
                " where t.key = 'cliptex.cell' and r.status = 'FINISHED'"
            ).fetchall()
        if running:
            return f"left running: {running}"
        if len(set(cells)) < len(cells):
            return f"finished twice: {cells}"
        files = [path for pattern in TEMPORARY for path in self.folder.rglob(pattern)]
        scratch = (self.folder / "tmp").rglob("*")
        files += [path for path in scratch if path.is_file() and path.suffix != ".lock"]
        names = [str(path.relative_to(self.folder)) for path in files]
        return f"left on disk: {names}" if names else ""

    def difference(self, undisturbed: Sandbox, words: Sequence[str] = RUN) -> str:
        """How the command, run again without disturbance, differs from the undisturbed, or ''."""
        result = self.run([*words, "--json", "after.json"])
        if error := result.error(codes=(0,)):
            return f"afterwards: {error}"
        same = self.metrics("after.json") == undisturbed.metrics()
        return "" if same else "afterwards: other metrics"


def _run_command(
    variables: Mapping[str, str],
    folder: str,
    errors: str,
    largest_file: int | None,
    words: Sequence[str],
) -> None:
    os.environ.pop("MLFLOW_TRACKING_URI", None)
    os.environ.update(variables)
    os.chdir(folder)
    os.dup2(os.open(errors, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666), 2)
    tempfile.tempdir = None  # read from $TMPDIR again
    if largest_file is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (largest_file, largest_file))
    command(*words)
