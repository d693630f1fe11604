"""One process at a time, even after a kill; a wait is reported, a missing lock is one line."""

from __future__ import annotations

import errno
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import filelock
import pytest

from cliptex_common.errors import UserError
from cliptex_common.files import locked
from tests.kit.waiting import is_soon

pytestmark = pytest.mark.integration

WORK = """
import sys, time
from pathlib import Path
from cliptex_common.files import locked
path, journal, name, seconds = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3], float(sys.argv[4])
def note(event):
    with journal.open("a") as file:
        file.write(f"{name} {event}\\n")
with locked(path, lambda: note("waits")):
    note(f"in {path.stat().st_ino}")
    time.sleep(seconds)
    note("out")
"""


@pytest.fixture
def work(tmp_path):
    """Start processes that lock one file and keep a journal; kill them at the end."""
    started: list[subprocess.Popen] = []

    def start(name: str, seconds: float) -> subprocess.Popen:
        arguments = [tmp_path / "locks/a.lock", tmp_path / "journal", name, str(seconds)]
        started.append(subprocess.Popen([sys.executable, "-c", WORK, *map(str, arguments)]))
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.wait()


def lines(tmp_path: Path, count: int) -> list[str]:
    """The journal, once it has ``count`` lines."""
    journal = tmp_path / "journal"

    def entries() -> list[str]:
        return journal.read_text().splitlines() if journal.exists() else []

    assert is_soon(lambda: len(entries()) >= count), f"only {entries()}"
    return entries()


def test_three_processes_go_one_after_the_other_through_one_file(tmp_path, work):
    work("a", 1.5)
    lines(tmp_path, 1)
    waiting = [work("b", 0.3), work("c", 0.3)]
    assert [process.wait(60) for process in waiting] == [0, 0]
    journal = lines(tmp_path, 8)
    inside = [line.split() for line in journal if "waits" not in line]
    assert [line[1] for line in inside] == ["in", "out"] * 3, "two were in at once"
    assert len({line[2] for line in inside[::2]}) == 1, "the lock file was replaced"
    assert {"b waits", "c waits"} <= set(journal) and "a waits" not in journal


def test_a_killed_holder_lets_the_next_in_and_no_third(tmp_path, work):
    holder = work("a", 60)
    lines(tmp_path, 1)
    waiter = work("b", 0.5)
    lines(tmp_path, 2)
    holder.kill()
    lines(tmp_path, 3)
    with pytest.raises(filelock.Timeout), locked(tmp_path / "locks/a.lock", wait=False):
        pass
    assert waiter.wait(60) == 0
    with locked(tmp_path / "locks/a.lock", wait=False):
        pass


def test_a_process_forked_meanwhile_neither_keeps_nor_loses_the_lock(tmp_path):
    path = tmp_path / "a.lock"
    with locked(path):
        child = os.fork()
        if child == 0:
            time.sleep(60)
            os._exit(0)
        leaver = os.fork()
        if leaver == 0:
            os.closerange(3, 256)
            os._exit(0)
        os.waitpid(leaver, 0)
        with pytest.raises(filelock.Timeout), locked(path, wait=False):
            pass
    try:
        with locked(path, wait=False):
            pass
    finally:
        os.kill(child, 9)
        os.waitpid(child, 0)


@pytest.mark.parametrize("code", [errno.ENOSYS, errno.EROFS])
def test_a_folder_without_locks_is_one_line(tmp_path, monkeypatch, code):
    def flock(file: int, operation: int) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr("fcntl.flock", flock)
    message = f"cannot lock {tmp_path}/a.lock: {os.strerror(code)}; set CLIPTEX_HOME"
    with pytest.raises(UserError, match=re.escape(message)), locked(tmp_path / "a.lock"):
        pass
