"""A few points of each suite of ``make faults``, with seeds that stay the same."""

from __future__ import annotations

import random
import sqlite3
from contextlib import closing

import numpy as np
import pytest

from tests.faults import disk, inputs, odd, store
from tests.faults.place import Place

VERIFY = ["report", "--verify", "--experiment", "own"]


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Place:
    return Place.make(tmp_path_factory.mktemp("faults") / "whole")


def test_the_judge_sees_what_is_wrong(whole, tmp_path):
    place = whole.copy(tmp_path / "a")
    assert not place.left()
    (place.folder / "home/weights").mkdir(exist_ok=True)
    (place.folder / "home/weights/.a.12.tmp").touch()
    assert "left on disk" in place.left()
    with closing(sqlite3.connect(place.folder / "mlflow.db")) as db, db:
        db.execute("update runs set status = 'RUNNING'")
    assert "left running" in place.left()
    assert "hangs" in place.run(["report"], seconds=0).wrong()


def test_hostile_input(whole, tmp_path):
    found = inputs.points(whole, tmp_path, 6, 15)
    assert len(found) == 6
    assert [(what, wrong) for what, wrong in found if wrong] == []


def test_a_damaged_store(whole, tmp_path):
    assert store.damaged(whole, tmp_path / "a", "flipped", random.Random(0)) == ""


def test_a_full_disk(whole, tmp_path):
    assert disk.point(whole, tmp_path / "a", "run", 64) == ""


def test_a_strange_path(whole, tmp_path):
    assert odd.point(odd.of_path, whole, tmp_path, "an address's signs") == ""


def test_verify_finds_what_is_not_as_it_was(whole, tmp_path):
    place = whole.copy(tmp_path / "a")
    ended = place.run(VERIFY)
    assert (ended.code, "2 finished results, 0 things wrong" in ended.out) == (0, True), ended
    (camvid,) = [
        path.parent
        for path in place.folder.glob("mlruns/**/per_image.npz")
        if (path.parent / "config.py").exists()
    ]
    with np.load(camvid / "per_image.npz") as stored:
        arrays = dict(stored)
    arrays["intersection"] = arrays["intersection"][::-1] // 2
    np.savez(camvid / "per_image.npz", **arrays)
    (camvid / "protocol.json").write_text('{"version": 0}')
    (camvid / "metrics.json").unlink()
    ended = place.run(VERIFY)
    assert ended.code == 1, ended
    for wrong in (
        "by its per-image scores",
        "protocol.json is not the protocol",
        "has no metrics.json",
    ):
        assert wrong in ended.out.replace("\n", " "), ended.out
