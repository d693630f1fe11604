import hashlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from probes.datasets import download
from probes.datasets.download import ENTRIES, Download
from tests.servers import FileServer


@pytest.fixture
def server(tmp_path, monkeypatch):
    """A server of the files in ``tmp_path / "server"``; nobody waits for it."""
    monkeypatch.setattr(download, "WAITS", (0.0, 0.0))
    (tmp_path / "server").mkdir()
    with FileServer(tmp_path / "server") as running:
        yield running


@pytest.fixture
def served(server) -> Callable[[str], Download]:
    """An entry of the table, whose archives are those in the server's folder, with their
    checksums."""

    def entry(name: str) -> Download:
        archives = []
        for each in ENTRIES[name].archives:
            file = Path(server.folder, each.name)
            data = file.read_bytes() if file.is_file() else b""
            algorithm = each.checksum.partition(":")[0]
            checksum = (
                f"{algorithm}:{hashlib.new(algorithm, data).hexdigest()}" if algorithm else ""
            )
            archives.append(
                replace(
                    each, url=f"{server.address}/{each.name}", size=len(data), checksum=checksum
                )
            )
        return replace(ENTRIES[name], archives=archives, unpacked=1000)

    return entry
