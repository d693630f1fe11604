"""Shards on a server: the pairs of the local ones, by range requests; what a server does not give
is said in one line."""

from __future__ import annotations

import gc
import os
import pickle
import shutil
import sys
import time
from urllib.parse import unquote

import pytest
from torch.utils.data import DataLoader

from backbones.cliptex.data import remote
from backbones.cliptex.data.pairs import open_pairs
from backbones.cliptex.data.source import BadPair
from common.errors import UserError
from tests.backbones.cliptex import toy
from tests.servers import FileServer, free_port

pytest.importorskip("aiohttp", reason="no aiohttp: pip install 'cliptex-benchmark[remote]'")


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("CLIPTEX_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(remote, "WAITS", (0.01, 0.01))
    return toy.write_pairs(tmp_path / "bucket" / "cc", 20, 3)


@pytest.fixture
def server(folder):
    with FileServer(folder.parent) as server:
        yield server


def everything(pairs) -> list:
    return [pairs[index] for index in range(len(pairs))]


def test_pairs_are_those_of_the_local_shards(folder, server):
    pairs = open_pairs(f"{server.address}/cc/{{00000..00002}}.tar")
    assert everything(pairs) == everything(open_pairs(folder))
    assert pairs.fingerprint == open_pairs(folder).fingerprint, (
        "a training knows the same pairs again, wherever they lie"
    )
    assert [shard.name for shard in pairs.shards] == ["00000", "00001", "00002"]


def test_members_are_read_by_ranges_in_one_request_a_pair(folder, server):
    pairs = open_pairs(f"{server.address}/cc/00000.tar")
    server.requests.clear()
    pair = pairs[3]
    ((method, path, asked),) = server.requests
    first, last = map(int, asked.removeprefix("bytes=").split("-"))
    assert (method, path) == ("GET", "/cc/00000.tar")
    assert len(pair.image) < last - first < len(pair.image) + 4096


def test_neighbours_that_are_far_apart_are_asked_for_alone(tmp_path, folder, server):
    image = toy.encode(toy.scene(0)[0])
    toy.write_tar(folder / "far.tar", {"a.png": image, "b.bin": bytes(200_000), "a.txt": b"one"})
    pairs = open_pairs(f"{server.address}/cc/far.tar")
    server.requests.clear()
    assert (pairs[0].caption, pairs[0].image) == ("one", image)
    assert len(server.requests) == 4, "two for each of two reads"


def test_the_index_is_kept_by_version(folder, server):
    url = f"{server.address}/cc/00001.tar"
    open_pairs(url)
    server.requests.clear()
    assert len(open_pairs(url)) == 7 and [method for method, _, _ in server.requests] == ["HEAD"]
    toy.write_tar(folder / "00001.tar", {"new.png": toy.encode(toy.scene(1)[0]), "new.txt": b"new"})
    assert [pair.key for pair in everything(open_pairs(url))] == ["00001/new"]


@pytest.mark.parametrize(
    "knows", [{}, {"conditions": False}, {"version": "Last-Modified"}, {"version": ""}]
)
def test_a_shard_that_was_replaced_is_never_mixed_up(folder, knows):
    with FileServer(folder.parent, **knows) as server:
        pairs = open_pairs(f"{server.address}/cc/00000.tar")
        first = pairs[0]
        others = {
            f"{index}.{kind}": b"other " * 30 for index in range(20) for kind in ("png", "txt")
        }
        toy.write_tar(folder / "00000.tar", others)
        os.utime(folder / "00000.tar", ns=(1, 1))
        for index in range(len(pairs)):
            with pytest.raises(BadPair, match=r"00000\.tar \(it has changed since it was indexed"):
                pairs[index]
        assert first.caption.startswith("a ")


@pytest.mark.parametrize("version", ["ETag", "Last-Modified"])
def test_another_version_of_the_same_layout_is_refused_by_the_server(folder, server, version):
    server.version = version
    path = toy.write_tar(folder / "x.tar", {"a.png": toy.encode(toy.scene(0)[0]), "a.txt": b"one"})
    pairs = open_pairs(f"{server.address}/cc/x.tar")
    toy.write_tar(path, {"a.png": toy.encode(toy.scene(0)[0]), "a.txt": b"two"})
    os.utime(path, ns=(1, 1))
    with pytest.raises(BadPair, match="has changed"):
        pairs[0]


def test_a_shard_that_vanishes_is_a_bad_pair_and_a_busy_server_is_asked_again(folder, server):
    pairs = open_pairs(f"{server.address}/cc/00000.tar")
    server.busy = 2
    assert pairs[0].caption and server.busy == 0
    server.busy = 3
    with pytest.raises(BadPair, match="answered 503"):
        pairs[0]
    (folder / "00000.tar").unlink()
    with pytest.raises(BadPair, match=r"127\.0\.0\.1:\d+/cc/00000\.tar \(it is not there\)"):
        pairs[1]


def test_a_server_that_goes_away_is_a_bad_pair(folder):
    with FileServer(folder.parent) as server:
        pairs = open_pairs(f"{server.address}/cc/00000.tar")
    with pytest.raises(BadPair, match="cannot read http"):
        pairs[0]


def test_loading_processes_read_for_themselves(folder, server):
    pairs = open_pairs(f"{server.address}/cc/{{00000..00002}}.tar")
    expected = [
        (pair.key, pair.caption) for pair in everything(pairs)
    ]  # and this process is connected
    began = time.monotonic()

    def collected(pair):
        if pair.shard == "00000":
            gc.collect()  # also what the parent left
        return pair

    loader = DataLoader(pairs, batch_size=None, num_workers=2, collate_fn=collected)
    assert [(pair.key, pair.caption) for pair in loader] == expected
    assert [
        (pair.key, pair.caption) for pair in everything(pickle.loads(pickle.dumps(pairs)))
    ] == expected
    assert time.monotonic() - began < 100, (
        "a fork does not cut its parent's connections, which then wait for a time-out of 300 s"
    )


def one_line(source: str) -> str:
    with pytest.raises(UserError) as caught:
        open_pairs(source)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_what_cannot_be_read_is_one_line(folder, server):
    url = f"{server.address}/cc"
    assert "00003.tar: it is not there" in one_line(f"{url}/{{00000..00003}}.tar")
    assert "cannot read http://127.0.0.1" in one_line(f"http://127.0.0.1:{free_port()}/a.tar")
    assert "named by braces" in one_line(f"{url}/*.tar")
    assert "a table is read on this machine" in one_line(f"{url}/train.csv")
    assert "nosuch:// cannot be read here (Protocol not known" in one_line("nosuch://bucket/a.tar")
    server.busy = 2
    assert "its server answered 503" in one_line(f"{url}/00000.tar")
    whole = (folder / "00000.tar").read_bytes()
    (folder / "cut.tar").write_bytes(whole[: len(whole) // 2 // 512 * 512])
    assert "cut.tar is cut off" in one_line(f"{url}/cut.tar")


def test_a_package_that_is_missing_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "s3fs", None)
    monkeypatch.setattr(remote, "_instance", remote._instance.__wrapped__)  # which forgets
    monkeypatch.delitem(sys.modules["fsspec.registry"]._registry, "s3", raising=False)
    message = one_line("s3://bucket/{0..3}.tar")
    assert (
        "s3:// cannot be read here (Install s3fs" in message
        and "cliptex-benchmark[remote]" in message
    )


def test_a_server_without_ranges_is_said_before_the_shard_is_fetched(folder):
    with FileServer(folder.parent, ranges=False) as server:
        assert "cannot be read in parts" in one_line(f"{server.address}/cc/00000.tar")


def test_passwords_and_signatures_are_not_shown(folder, server):
    address = server.address.replace("http://", "http://me:secret@")
    pairs = open_pairs(f"{address}/cc/00000.tar?signature=secret")
    assert len(pairs) == 7 and [shard.name for shard in pairs.shards] == ["00000"]
    assert "secret" not in pairs.name + str(pairs.shards)
    assert "secret" not in one_line(f"{address}/cc/none.tar?signature=secret")


def test_s3(folder, server, monkeypatch):
    """The same server answers as S3 does to whom asks for objects alone."""
    pytest.importorskip("s3fs", reason="no s3fs: pip install 'cliptex-benchmark[remote]'")
    monkeypatch.setenv("AWS_ENDPOINT_URL", server.address)
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "test")
    url = "s3://cc/{00000..00002}.tar"
    shutil.copytree(folder, server.folder, dirs_exist_ok=True)
    pairs = open_pairs(url)
    assert everything(pairs) == everything(open_pairs(folder))
    toy.write_tar(
        folder / "00000.tar", {"other.png": toy.encode(toy.scene(1)[0]), "other.txt": b"x"}
    )
    with pytest.raises(BadPair, match="has changed"):
        pairs[0]
    (folder / "00000.tar").unlink()
    with pytest.raises(BadPair, match="not there"):
        pairs[1]
    assert "it is not there" in one_line("s3://cc/none.tar")


@pytest.mark.parametrize("secret", ["abcdefgh", "abcd/efgh+ij", "abc%2Fdefgh"])
def test_what_a_library_says_of_an_address_hides_its_secrets(secret, monkeypatch):
    class Refused:
        def info(self, url):
            key, value = secrets
            raise OSError(
                f'Invalid bucket "{key}:{value}@bucket" ({value}; {unquote(value)};'
                f" {value.partition('/')[0]}; {url})"
            )

    secrets = "AKIA01234567", secret
    monkeypatch.setattr(remote, "_filesystem", lambda url: Refused())
    told = one_line(f"s3://AKIA01234567:{secret}@bucket/a.tar")
    assert told.startswith(
        'cannot read s3://bucket/a.tar: Invalid bucket "***@bucket" (***; ***; ***;'
        " s3://bucket/a.tar)"
    )
