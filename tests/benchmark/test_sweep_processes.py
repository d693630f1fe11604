"""Worker processes of a launched sweep: replaced when killed, and told when the user must mend something."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from benchmark.execution.progress import Bar
from benchmark.sweep_processes import RESTARTS, Workers, measure_seeds, share_cells
from benchmark.evaluation.sweep_bench import Machine
from reports.tracking import Tracker
from sweeps.cells import progress
from sweeps.errors import SweepError
from tests.sweeps.cheap import completed, start

DRAIN = "from tests.sweeps.cheap import drain; drain({storage!r}, '/dev/null')"


class Scripted(Workers):
    """Workers that run the next of some shell lines instead of a training."""

    def start(self, number, *extra):
        line = self.lines.pop(0)
        self.started.append(extra)
        path = self.log_file(number)
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("w") as log:
            return subprocess.Popen(["sh", "-c", line], stdout=log, stderr=log, cwd=Path(__file__).parents[2])


@pytest.fixture
def scripted(tmp_path, monkeypatch):
    """(lines, count) → workers on a study of three cells."""
    monkeypatch.setenv("CLIPTEX_HOME", str(tmp_path / "home"))
    storage = f"sqlite:///{tmp_path / 'sweeps.db'}"
    sweep = start(storage, lambdas=("seg",))
    tracker = Tracker("sweep", f"sqlite:///{tmp_path / 'mlflow.db'}")

    def make(lines, count=1):
        workers = Scripted(sweep, storage, tracker, Machine(), count)
        object.__setattr__(workers, "lines", list(lines))
        object.__setattr__(workers, "started", [])
        return workers

    return make


def test_a_killed_worker_is_replaced_and_the_cells_are_finished(scripted, capsys):
    workers = scripted(["kill -9 $$", ""])
    workers.lines[1] = f'"{sys.executable}" -c "{DRAIN.format(storage=workers.storage)}"'
    share_cells(workers, Bar())
    assert completed(workers.sweep) == sorted(cell.key for cell in workers.sweep.space.cells())
    told = capsys.readouterr().out
    assert "was killed (signal 9); another takes its place" in told
    assert told.count("  trial ") == 3, "each trial is told once"


def test_workers_that_are_killed_every_time_are_not_replaced_for_ever(scripted, capsys):
    workers = scripted(["kill -9 $$"] * (RESTARTS + 1))
    share_cells(workers, Bar())
    assert workers.lines == [] and progress(workers.sweep).left == 3
    assert "ended with code -9" in capsys.readouterr().out


def test_what_the_user_must_mend_is_said_as_the_worker_said_it(scripted):
    with pytest.raises(SweepError, match=r"^the disk is full$"):
        share_cells(scripted(["echo 'error: the disk is full'; exit 2"]), Bar())


def test_seeds_that_were_not_measured_are_named(scripted, capsys):
    workers = scripted(["exit 0", "echo it broke; exit 1"], count=2)
    measure_seeds(workers, [4, 5], Bar())
    assert workers.started == [("--base-seed", "4"), ("--base-seed", "5")]
    assert "seed 5 was not measured: it broke" in capsys.readouterr().out
