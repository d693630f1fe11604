"""Downloads resume after a kill or a cut connection, and report a server that fails."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import pytest

from backbones.cliptex.protocols import Silent
from common.errors import UserError
from probes.datasets.download.fetch import checksums, download

DATA = os.urandom(3_000_000)


class Steps(Silent):
    def __init__(self) -> None:
        self.started: list[tuple[str, int]] = []
        self.done = 0

    def start(self, description, total):
        self.started.append((description, total))

    def advance(self, steps=1):
        self.done += steps


@pytest.fixture
def source(server):
    (server.folder / "a.tar").write_bytes(DATA)
    return server


def test_a_file_comes_with_its_progress(source, tmp_path):
    steps = Steps()
    download(f"{source.address}/a.tar", tmp_path / "to/a.tar", steps)
    assert (tmp_path / "to/a.tar").read_bytes() == DATA
    assert steps.started == [("a.tar, MB", 3)] and steps.done == 3
    assert [path.name for path in (tmp_path / "to").iterdir()] == ["a.tar"], "nothing beside it"


def test_what_came_is_not_asked_for_again(source, tmp_path):
    source.cut = 1_234_567
    download(f"{source.address}/a.tar", tmp_path / "a.tar", Silent())
    assert (tmp_path / "a.tar").read_bytes() == DATA
    assert [ranges for _, _, ranges in source.requests] == ["", "bytes=1234567-"]


def test_a_killed_download_goes_on(source, tmp_path):
    """A process that is killed in the middle, on a connection that stands still."""
    file, part = tmp_path / "a.tar", tmp_path / "a.tar.part"
    address = f"{source.address}/a.tar"
    code = (
        "import sys, time; from pathlib import Path\n"
        "from backbones.cliptex.protocols import Silent\n"
        "from probes.datasets.download import fetch\n"
        "class Slow(Silent):\n"
        "    def advance(self, steps=1): time.sleep(60)\n"
        f"fetch.download({address!r}, Path({str(file)!r}), Slow())"
    )
    process = subprocess.Popen([sys.executable, "-c", code])
    deadline = time.monotonic() + 60
    while not (part.is_file() and part.stat().st_size) and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    had = part.stat().st_size
    assert 0 < had < len(DATA) and not file.exists()
    download(address, file, Silent())
    assert file.read_bytes() == DATA
    assert source.requests[-1][2] == f"bytes={had}-"


def test_a_server_without_ranges_sends_all_again(source, tmp_path):
    source.ranges, source.cut = False, 1_000_000
    download(f"{source.address}/a.tar", tmp_path / "a.tar", Silent())
    assert (tmp_path / "a.tar").read_bytes() == DATA


def test_a_download_killed_at_its_end_is_complete(source, tmp_path):
    (tmp_path / "a.tar.part").write_bytes(DATA)
    download(f"{source.address}/a.tar", tmp_path / "a.tar", Silent())
    assert (tmp_path / "a.tar").read_bytes() == DATA and len(source.requests) == 1


def test_redirections_are_followed_and_resumed(source, tmp_path):
    source.moved, source.cut = {"/old/a.tar": f"{source.address}/a.tar"}, 1_000_000
    download(f"{source.address}/old/a.tar", tmp_path / "a.tar", Silent())
    assert (tmp_path / "a.tar").read_bytes() == DATA
    assert [ranges for _, path, ranges in source.requests if path == "/a.tar"] == [
        "",
        "bytes=1000000-",
    ]


def test_a_busy_server_is_asked_again_and_one_that_stays_so_is_said(source, tmp_path):
    source.busy = 2
    download(f"{source.address}/a.tar", tmp_path / "a.tar", Silent())
    source.busy = 9
    with pytest.raises(UserError, match=r"does not answer \(503.*run the command again"):
        download(f"{source.address}/a.tar", tmp_path / "b.tar", Silent())


def test_what_is_not_there_is_said_at_once(source, tmp_path):
    with pytest.raises(UserError, match=r"404.*pass --archive PATH"):
        download(f"{source.address}/b.tar", tmp_path / "b.tar", Silent())
    assert len(source.requests) == 1


def test_checksums(tmp_path):
    (tmp_path / "a").write_bytes(b"abc")
    assert checksums(tmp_path / "a", ["md5", "sha1"], Silent()) == {  # RFC 1321, FIPS 180-4
        "md5": "900150983cd24fb0d6963f7d28e17f72",
        "sha1": "a9993e364706816aba3e25717850c26c9cd0d89d",
    }
