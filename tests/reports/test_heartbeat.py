"""Whether the process that writes a run is alive."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest

from reports import tracking
from reports.tracking import LOCK_TAG, MACHINE_TAG, SILENT_SECONDS, TIME_TAG, is_alive
from tests.forks import Fork

pytestmark = pytest.mark.integration


def write_tags(folder: Path) -> None:
    if os.fork() == 0:
        time.sleep(5)
        os._exit(0)
    lines = [f"{name}={value}" for name, value in tracking.process_tags().items()]
    (folder / "new").write_text("\n".join(lines))
    (folder / "new").rename(folder / "tags")
    time.sleep(600)


def test_a_process_is_alive_until_it_is_killed_whatever_its_children_do(tmp_path):
    process = Fork(write_tags, tmp_path, output=tmp_path / "output")
    process.wait_for(tmp_path, "tags")
    tags = dict(line.split("=") for line in (tmp_path / "tags").read_text().splitlines())
    assert is_alive(tags) and is_alive(tracking.process_tags())
    process.signal(signal.SIGKILL)
    process.end()
    assert not is_alive(tags)


def test_another_machine_counts_by_its_time_stamp():
    tags = {MACHINE_TAG: "elsewhere", LOCK_TAG: tracking.process_tags()[LOCK_TAG]}
    assert is_alive({**tags, TIME_TAG: str(time.time() - SILENT_SECONDS + 60)})
    assert not is_alive({**tags, TIME_TAG: str(time.time() - SILENT_SECONDS - 60)})
    assert not is_alive({})
