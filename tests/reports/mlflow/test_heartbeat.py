"""Signs of life: who may still be writing a run, and who is known to be gone."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

from reports.mlflow import heartbeat
from reports.mlflow.heartbeat import (
    FILE_TAG,
    HOME_TAG,
    LIMIT,
    OLD,
    PROCESS_TAG,
    SILENT,
    TIME_TAG,
    Heartbeat,
    alive,
    gone,
    settle,
    this_process,
)


@pytest.fixture
def dead() -> str:
    """The name of a process of this machine that is no more."""
    command = "from reports.mlflow.heartbeat import this_process; print(this_process())"
    root = str(Path(__file__).parents[3])
    return subprocess.run(
        [sys.executable, "-c", command], capture_output=True, text=True, check=True, cwd=root
    ).stdout.strip()


def written(path: Path, process: str, age: float) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"process": process, "time": time.time() - age}))
    return str(path)


def test_a_process_is_known_by_machine_pid_and_start(dead: str) -> None:
    mine = this_process()
    assert not gone(mine) and gone(dead)
    assert gone(mine.rsplit(":", 1)[0] + ":1"), "the pid is another process's now"
    assert not gone("elsewhere/abc/1|1:1"), "of other machines nothing is known"
    assert not gone("")


def test_alive_needs_a_sign_that_is_not_old_or_a_process_that_is_not_gone(
    tmp_path: Path, dead: str
) -> None:
    file = tmp_path / "tasks" / "unit" / "status.json"
    elsewhere = "elsewhere/abc/1|1:1"
    for process, limit in ((this_process(), None), (elsewhere, None), (dead, OLD)):
        for age in (0, OLD + 1, SILENT - 5, SILENT + 1, LIMIT - 5, LIMIT + 1):
            by_file = alive({PROCESS_TAG: process, FILE_TAG: written(file, process, age)})
            by_mlflow = alive({PROCESS_TAG: process, TIME_TAG: str(time.time() - age)})
            assert by_file is (age <= (limit or SILENT)), (process, age)
            assert by_mlflow is (age <= (limit or LIMIT)), (process, age)


def test_work_that_another_took_up_or_that_is_over_is_no_longer_its_own(tmp_path: Path) -> None:
    file = written(tmp_path / "tasks" / "unit" / "status.json", "elsewhere/abc/1|2:2", 0)
    with Heartbeat(Path(file).parents[1] / "other" / "status.json"):
        home = heartbeat.tags()[HOME_TAG]
    first = {
        PROCESS_TAG: "elsewhere/abc/1|1:1",
        FILE_TAG: file,
        HOME_TAG: home,
        TIME_TAG: str(time.time()),
    }
    assert not alive(first) and alive({**first, PROCESS_TAG: "elsewhere/abc/1|2:2"})
    Path(file).unlink()
    Path(file).parent.rmdir()
    assert not alive(first), "its folder is gone, and the home is in sight"
    assert alive({**first, FILE_TAG: "/not/in/sight/status.json"}), (
        "of a home that is not in sight nothing is known"
    )
    assert alive({**first, HOME_TAG: "another"}), (
        "another machine has a home of its own at the same path"
    )


def test_settle_waits_until_a_sign_of_a_dead_process_is_old(
    tmp_path: Path, dead: str, monkeypatch
) -> None:
    monkeypatch.setattr(heartbeat, "OLD", 1.0)
    started = time.monotonic()
    assert not settle({PROCESS_TAG: dead, TIME_TAG: str(time.time())})
    assert time.monotonic() - started > 0.5
    assert settle({PROCESS_TAG: this_process(), TIME_TAG: str(time.time())})


def test_a_heartbeat_is_rewritten_with_what_changes_and_tags_name_it(
    tmp_path: Path, monkeypatch
) -> None:
    monkeypatch.setattr(heartbeat, "EVERY", 0.05)
    path = tmp_path / "tasks" / "unit" / "status.json"
    with Heartbeat(path, name="unit") as beat:
        assert heartbeat.tags()[FILE_TAG] == str(path)
        first = heartbeat.read(path)
        beat.update(done=3)
        time.sleep(0.3)
        later = heartbeat.read(path)
        assert (first["name"], later["done"], later["process"]) == ("unit", 3, this_process())
        assert later["time"] > first["time"]
    assert FILE_TAG not in heartbeat.tags()
    assert list(path.parent.iterdir()) == [path], "nothing is left beside it"
