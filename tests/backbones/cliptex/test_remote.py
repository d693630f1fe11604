"""Shards on a server give the pairs of local ones; failures are one line without credentials."""

from __future__ import annotations

from pathlib import Path

import pytest

from backbones.cliptex.pairs import open_pairs
from cliptex_common.errors import UserError
from tests.backbones.cliptex import toy
from tests.servers import FileServer, free_port

pytest.importorskip("aiohttp", reason="no aiohttp: pip install -e '.[remote]'")


@pytest.fixture
def folder(tmp_path, own_home):
    return toy.write_pairs(tmp_path / "bucket" / "cc", 20, 3)


@pytest.fixture
def server(folder):
    with FileServer(folder.parent) as server:
        yield server


def read_all(pairs) -> list:
    return [pairs[index] for index in range(len(pairs))]


def test_pairs_equal_those_of_local_shards_and_are_fetched_once(folder):
    with FileServer(folder.parent) as server:
        url = f"{server.address}/cc/{{00000..00002}}.tar"
        pairs = read_all(open_pairs(url))
    assert pairs == read_all(open_pairs(folder))
    again = open_pairs(url)
    assert read_all(again) == pairs, "the server is gone"
    assert again.fingerprint == open_pairs(folder).fingerprint
    assert [shard.name for shard in again.shards] == ["00000", "00001", "00002"]


def test_an_interrupted_download_is_fetched_again(folder, server, monkeypatch):
    url = f"{server.address}/cc/00000.tar"

    class Interrupted:
        def get_file(self, url, path):
            Path(path).write_bytes(b"half of it")
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("fsspec.filesystem", lambda protocol: Interrupted())
        with pytest.raises(KeyboardInterrupt):
            open_pairs(url)
    assert read_all(open_pairs(url)) == read_all(open_pairs(folder / "00000.tar"))


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("{address}/cc/{{00000..00009}}.tar", "cannot fetch .*/cc/0000[3-9].tar"),
        ("{address}/cc/*.tar", "by braces"),
        ("http://127.0.0.1:{port}/00000.tar", "its server can be reached"),
        ("nothing://host/00000.tar", "cannot fetch nothing://host"),
    ],
)
def test_what_cannot_be_fetched_is_one_line(server, source, message):
    with pytest.raises(UserError, match=message) as raised:
        open_pairs(source.format(address=server.address, port=free_port()))
    assert "\n" not in str(raised.value)


def test_credentials_are_never_shown(folder, server):
    address = server.address.replace("://", "://user:opensesame@")
    for source in (
        f"{address}/cc/{{00000..00009}}.tar?token=hidden-token",
        f"{address}/cc/*.tar",
        f"{address}/train.csv",
    ):
        with pytest.raises(UserError) as raised:
            open_pairs(source)
        assert "opensesame" not in str(raised.value) and "hidden-token" not in str(raised.value)
    pairs = open_pairs(f"{address}/cc/00000.tar?token=hidden-token")
    assert "opensesame" not in pairs.name and "hidden-token" not in pairs.name
    assert [shard.name for shard in pairs.shards] == ["00000"]
