"""Downloads resume after a kill or a cut connection, and report a server that fails."""

import os
import signal
import subprocess
import sys
import time

import pytest

from cliptex_common.errors import UserError
from cliptex_common.progress import Silent
from probes.datasets.download import checksum, download
from tests.recorder import Recorder

DATA = os.urandom(3_000_000)


@pytest.fixture
def source(server):
    (server.folder / "a.tar").write_bytes(DATA)
    return server


def test_a_file_comes_with_its_progress(source, tmp_path):
    bar = Recorder()
    download(f"{source.address}/a.tar", tmp_path / "to/a.tar", bar)
    assert (tmp_path / "to/a.tar").read_bytes() == DATA
    assert bar.started == [("a.tar, MB", 3)] and bar.advanced == 3
    assert [path.name for path in (tmp_path / "to").iterdir()] == ["a.tar"], "nothing beside it"


@pytest.mark.integration
def test_a_killed_download_goes_on(source, tmp_path):
    """A process that is killed in the middle, on a connection that stands still."""
    file, part = tmp_path / "a.tar", tmp_path / "a.tar.part"
    address = f"{source.address}/a.tar"
    code = (
        "import sys, time; from pathlib import Path\n"
        "from cliptex_common.progress import Silent\n"
        "from probes.datasets.download import download\n"
        "class Slow(Silent):\n"
        "    def advance(self, steps=1): time.sleep(60)\n"
        f"download({address!r}, Path({str(file)!r}), Slow())"
    )
    process = subprocess.Popen([sys.executable, "-c", code])
    deadline = time.monotonic() + 600
    while not (part.is_file() and part.stat().st_size) and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    had = part.stat().st_size
    assert 0 < had < len(DATA) and not file.exists()
    download(address, file, Silent())
    assert file.read_bytes() == DATA
    assert source.requests[-1][2] == f"bytes={had}-"


def test_a_download_killed_at_its_end_is_complete(source, tmp_path):
    (tmp_path / "a.tar.part").write_bytes(DATA)
    download(f"{source.address}/a.tar", tmp_path / "a.tar", Silent())
    assert (tmp_path / "a.tar").read_bytes() == DATA and len(source.requests) == 1


def test_checksums(tmp_path):
    (tmp_path / "a").write_bytes(b"abc")
    digests = {  # RFC 1321, FIPS 180-4
        "md5": "900150983cd24fb0d6963f7d28e17f72",
        "sha1": "a9993e364706816aba3e25717850c26c9cd0d89d",
    }
    for algorithm, digest in digests.items():
        assert checksum(tmp_path / "a", algorithm, Silent()) == digest


@pytest.mark.parametrize(
    ("path", "has_ranges", "resumed"),
    [
        ("a.tar", True, "bytes=1000000-"),
        ("old/a.tar", True, "bytes=1000000-"),
        ("a.tar", False, None),
    ],
)
def test_a_cut_download_resumes_where_the_server_allows_it(
    source, tmp_path, path, has_ranges, resumed
):
    source.moved, source.cut = {"/old/a.tar": f"{source.address}/a.tar"}, 1_000_000
    source.ranges = has_ranges
    download(f"{source.address}/{path}", tmp_path / "a.tar", Silent())
    assert (tmp_path / "a.tar").read_bytes() == DATA
    if resumed:
        ranges = [header for _, path, header in source.requests if path == "/a.tar"]
        assert ranges == ["", resumed]


def test_servers_that_fail(source, tmp_path):
    with pytest.raises(UserError, match=r"404.*pass --archive PATH"):
        download(f"{source.address}/b.tar", tmp_path / "b.tar", Silent())
    assert len(source.requests) == 1, "a missing file is requested once"
    source.busy = 2
    download(f"{source.address}/a.tar", tmp_path / "a.tar", Silent())
    source.busy = 9
    with pytest.raises(UserError, match=r"does not answer \(503.*run the command again"):
        download(f"{source.address}/a.tar", tmp_path / "b.tar", Silent())
