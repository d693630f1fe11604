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
    in_shards = {pairs.key(i) for shard in pairs.shards for i in pairs.iter_shard(shard)}
    assert in_shards == set(map(pairs.key, range(20))) and len(in_shards) == 20
    with pytest.raises(IndexError):
        pairs[20]


def test_index_is_cached_but_follows_the_file(tmp_path):
    fingerprints, image = set(), make.encoded(toy.scene(0)[0])
    for name, caption in (("x", "one"), ("longer", "two")):
        members = {f"{name}.png": image, f"{name}.txt": caption.encode()}
        path = make.write_tar(tmp_path / "a.tar", members)
        for pairs in (open_pairs(path), open_pairs(path)):
            assert (pairs[0].caption, pairs.key(0)) == (caption, f"a/{name}")
            fingerprints.add(pairs.fingerprint)
    assert len(fingerprints) == 2


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


@pytest.mark.parametrize(
    ("last", "message"),
    [("00005", r"no pairs|missing"), ("99999999999", "100000000000 shards are more than 1000000")],
)
def test_shards_that_are_not_there(tmp_path, last, message):
    with pytest.raises(UserError, match=message):
        open_pairs(f"{tmp_path}/{{00000..{last}}}.tar")


def test_damaged_shards(tmp_path, shards):
    content = (shards / "00000.tar").read_bytes()
    with tarfile.open(shards / "00000.tar") as archive:
        at = archive.getmembers()[6].offset
    for name, damaged, message in (
        ("header", content[:at] + b"\xff" * 100 + content[at + 100 :], f"damaged at byte {at}"),
        ("cut", content[: len(content) // 2 - 700], ""),
        ("at-block", content[: 512 * 7], ""),
        ("noise", b"not a tar" * 1000, ""),
        ("zeros", b"x" * 1024 + bytes(1024), ""),
    ):
        path = tmp_path / f"{name}.tar"
        path.write_bytes(damaged)
        with pytest.raises(UserError, match=rf"{name}\.tar .*{message}"):
            open_pairs(path)


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
    tar, csv_, tsv = (
        open_pairs(f"{folder}/{name}")
        for name in ("shards/{000000..000001}.tar", "train.csv", "train.tsv")
    )
    assert len(tar) == len(csv_) == len(tsv) == 250
    for i in range(250):
        assert tar[i].caption == csv_[i].caption.strip() and tar[i].image == csv_[i].image


@pytest.mark.parametrize("kind", ["pair-index/*.json", "pair-index/*.npy"])
@pytest.mark.parametrize("share", [0.0, 0.5, 0.97])
def test_a_stored_index_that_is_cut_is_made_again(shards, own_home, kind, share):
    first = open_pairs(shards)
    (cut, *_) = sorted(own_home.glob(kind))
    os.truncate(cut, int(cut.stat().st_size * share))
    again = open_pairs(shards)
    assert [each.caption for each in again] == [each.caption for each in first]
    assert again.fingerprint == first.fingerprint
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
