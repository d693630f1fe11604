"""Pairs: every layout gives every pair once, in a seeded order; damage is named."""

from __future__ import annotations

import csv
import itertools
import json
import os
import tarfile

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import backbones.cliptex.pairs as module
from backbones.cliptex.pairs import (
    BadPair,
    FailureCounter,
    PairSource,
    Shard,
    decode_image,
    open_pairs,
)
from cliptex_common.errors import UserError
from tests.backbones.cliptex import toy
from tests.probes.datasets import make


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    return toy.write_pairs(tmp_path_factory.mktemp("pairs"), 20, 3)


@pytest.mark.parametrize("pattern", ["", "/*.tar", "/{00000..00002}.tar"])
def test_every_way_to_name_shards_gives_the_same_pairs(shards, pattern):
    pairs = open_pairs(f"{shards}{pattern}")
    assert len(pairs) == 20 and len(pairs.shards) == 3
    assert pairs.fingerprint == open_pairs(shards).fingerprint
    for index in range(20):
        pair = pairs[index]
        image, caption, _ = toy.scene(int(pair.key.split("/")[1]))
        assert pair.key == pairs.key(index) and pair.caption == caption
        assert np.array_equal(decode_image(pair.image), image)
    assert sorted(pairs[i].key for s in pairs.shards for i in pairs.iter_shard(s)) == sorted(
        map(pairs.key, range(20))
    )
    with pytest.raises(IndexError):
        pairs[20]


def test_index_is_cached_but_follows_the_file(tmp_path):
    path = make.write_tar(
        tmp_path / "a.tar", {"x.png": make.encoded(toy.scene(0)[0]), "x.txt": b"one"}
    )
    first = open_pairs(path)
    assert first[0].caption == "one" and open_pairs(path)[0].caption == "one"
    make.write_tar(path, {"longer.png": make.encoded(toy.scene(1)[0]), "longer.txt": b"two"})
    second = open_pairs(path)
    assert (
        second[0].caption == "two"
        and second.key(0) == "a/longer"
        and second.fingerprint != first.fingerprint
    )


def test_caption_from_json_and_samples_without_image(tmp_path):
    members = {f"{i:03d}.jpg": make.encoded(toy.scene(i)[0], "JPEG") for i in range(150)}
    members |= {f"{i:03d}.json": json.dumps({"caption": f"no {i}"}).encode() for i in range(150)}
    del members["007.jpg"]
    pairs = open_pairs(make.write_tar(tmp_path / "s.tar", members))
    assert len(pairs) == 149 and pairs.skipped == (("s/007", "no image or no caption"),)
    assert pairs[7].caption == "no 8"
    for i in range(3):
        del members[f"{i + 20:03d}.jpg"]
    with pytest.raises(UserError, match=r"4 of 150 .*t/007"):
        open_pairs(make.write_tar(tmp_path / "t.tar", members))


@pytest.mark.parametrize(("suffix", "delimiter"), [(".csv", ","), (".tsv", "\t")])
def test_tables(tmp_path, suffix, delimiter):
    (tmp_path / "img").mkdir()
    rows = []
    for i in range(5):
        (tmp_path / "img" / f"{i}.png").write_bytes(make.encoded(toy.scene(i)[0]))
        rows.append((f"img/{i}.png", f'a "quoted", {i}'))
    rows.append(("img/0.png", "its second caption"))
    path = tmp_path / f"train{suffix}"
    with path.open("w", newline="", encoding="utf-8-sig") as file:  # as a spreadsheet writes it
        csv.writer(file, delimiter=delimiter).writerows([("filepath", "caption"), *rows])
    pairs = open_pairs(path)
    assert [pairs[i].caption for i in range(6)] == [caption for _, caption in rows]
    assert pairs.key(0) == "train-00000/img/0.png" and pairs.key(5) == "train-00000/img/0.png#2"
    assert np.array_equal(decode_image(pairs[3].image), toy.scene(3)[0])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("image_url,words\na,b\n", "columns filepath and caption"),
        ("filepath,caption\na.png\n", "line 2"),
        ("filepath,caption\na.png,x\nb.png,y\n", "2 of 2 images"),
        ('filepath,caption\n"a.png,x\n', "not a readable csv"),
    ],
)
def test_malformed_tables(tmp_path, text, message):
    path = tmp_path / "t.csv"
    path.write_text(text)
    with pytest.raises(UserError, match=message):
        open_pairs(path)
    with pytest.raises(UserError, match=r"no pairs|missing"):
        open_pairs(f"{tmp_path}/{{00000..00005}}.tar")
    with pytest.raises(UserError, match="100000000000 shards are more than 1000000"):
        open_pairs("{0..99999999999}.tar")


def test_damaged_shards(tmp_path, shards):
    content = (shards / "00000.tar").read_bytes()
    with tarfile.open(shards / "00000.tar") as archive:
        at = archive.getmembers()[6].offset
    (tmp_path / "header.tar").write_bytes(content[:at] + b"\xff" * 100 + content[at + 100 :])
    with pytest.raises(UserError, match=rf"header\.tar .*damaged at byte {at}"):
        open_pairs(tmp_path / "header.tar")
    (tmp_path / "cut.tar").write_bytes(content[: len(content) // 2 - 700])
    (tmp_path / "at-block.tar").write_bytes(content[: 512 * 7])
    (tmp_path / "noise.tar").write_bytes(b"not a tar" * 1000)
    (tmp_path / "zeros.tar").write_bytes(b"x" * 1024 + bytes(1024))
    for name in ("cut", "at-block", "noise", "zeros"):
        with pytest.raises(UserError, match=f"{name}.tar"):
            open_pairs(tmp_path / f"{name}.tar")


def test_corrupt_images_are_bad_pairs_and_counted():
    data = make.encoded(toy.scene(0)[0], "JPEG")
    for broken in (b"", b"nonsense", data[: len(data) // 2]):
        with pytest.raises(BadPair):
            decode_image(broken)
    failures = FailureCounter("pairs of x")
    for i in range(10):
        failures.bad[f"k{i}"] = "broken"
    failures.check(1000)
    with pytest.raises(UserError, match="10 of 999 pairs of x"):
        failures.check(999)


@given(
    counts=st.lists(st.integers(1, 30), min_size=1, max_size=12),
    seed=st.integers(0, 99),
    epoch=st.integers(0, 9),
    window=st.integers(1, 100),
)
def test_epoch_order_is_a_permutation_that_stays_local(counts, seed, epoch, window):
    source = PairSource()
    starts = np.cumsum([0, *counts[:-1]])
    source.shards = tuple(
        Shard(str(i), None, int(s), c) for i, (s, c) in enumerate(zip(starts, counts, strict=True))
    )
    order = source.epoch_order(seed, epoch, window)
    assert sorted(order) == list(range(sum(counts)))
    assert np.array_equal(order, source.epoch_order(seed, epoch, window))
    if window == 1:  # one shard after another
        shard = [source.shard_of(int(i)) for i in order]
        assert sum(a != b for a, b in itertools.pairwise(shard)) == len(counts) - 1


def test_real_pairs_are_the_same_in_every_layout(real_data):
    folder = real_data / "cc_pairs"
    tar, table = (
        open_pairs(f"{folder}/shards/{{000000..000001}}.tar"),
        open_pairs(folder / "train.csv"),
    )
    assert len(tar) == len(table) == len(open_pairs(folder / "train.tsv")) == 250
    assert [tar[i].caption for i in range(250)] == [table[i].caption.strip() for i in range(250)]
    assert all(tar[i].image == table[i].image for i in range(0, 250, 25))


@pytest.mark.parametrize("kind", ["pair-index/*.json", "pair-index/*.npy"])
@pytest.mark.parametrize("keep", [0.0, 0.5, 0.97])
def test_a_kept_index_that_is_cut_is_made_again(shards, tmp_path, monkeypatch, kind, keep):
    monkeypatch.setenv("CLIPTEX_HOME", str(tmp_path))
    first = open_pairs(shards)
    captions = [first[index].caption for index in range(len(first))]
    (cut, *_) = sorted(tmp_path.glob(kind))
    os.truncate(cut, int(cut.stat().st_size * keep))
    again = open_pairs(shards)
    assert [
        again[index].caption for index in range(len(again))
    ] == captions and again.fingerprint == first.fingerprint
    assert not open_pairs(shards, keep=False).skipped


@pytest.mark.parametrize("cores", [1, 2])
def test_processes_index_bit_for_bit_as_one_does(tmp_path, shards, monkeypatch, cores):
    def index(home: str) -> dict[str, bytes]:
        monkeypatch.setenv("CLIPTEX_HOME", str(tmp_path / home))
        open_pairs(shards)
        return {path.name: path.read_bytes() for path in tmp_path.glob(f"{home}/pair-index/*.*")}

    expected = index("alone")
    monkeypatch.setattr(module, "PARALLEL_BYTES", 0)
    allowed = set(range(cores))
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: allowed, raising=False)
    assert index("together") == expected and len(expected) >= 2
    for number in range(2):
        (tmp_path / f"{number}.tar").write_bytes(b"not a tar" * 1000)
    with pytest.raises(UserError, match=r"0\.tar is not a readable"):
        open_pairs(f"{tmp_path}/*.tar")
