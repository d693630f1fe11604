"""A few points of the suites of ``make faults``."""

from __future__ import annotations

import random
import sqlite3
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest

from reports.mlflow.query import Store
from tests.faults import disk, store
from tests.faults.sandbox import Sandbox
from tests.faults.verify import verify


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory) -> Sandbox:
    return Sandbox.make(tmp_path_factory.mktemp("faults") / "undisturbed")


def test_the_sandbox_detects_leftovers(undisturbed, tmp_path):
    sandbox = undisturbed.copy(tmp_path / "a")
    assert not sandbox.leftovers()
    (sandbox.folder / "home/weights").mkdir(exist_ok=True)
    (sandbox.folder / "home/weights/.a.12.tmp").touch()
    assert "left on disk" in sandbox.leftovers()
    with closing(sqlite3.connect(sandbox.folder / "mlflow.db")) as db, db:
        db.execute("update runs set status = 'RUNNING'")
    assert "left running" in sandbox.leftovers()
    assert "hangs" in sandbox.run(["report"], seconds=0).error()


def test_a_damaged_store(undisturbed, tmp_path):
    assert store.damaged(undisturbed, tmp_path / "a", "flipped", random.Random(0)) == ""


def test_a_full_disk(undisturbed, tmp_path):
    assert disk.fill_disk(undisturbed, tmp_path / "a", "run", 64) == ""


def test_verify_finds_what_is_not_as_it_was(undisturbed, tmp_path, monkeypatch):
    sandbox = undisturbed.copy(tmp_path / "a")
    monkeypatch.chdir(sandbox.folder)
    assert verify_own() == (2, [])
    (camvid,) = [
        path.parent
        for path in sandbox.folder.glob("mlruns/**/per_image.npz")
        if (path.parent / "config.py").exists()
    ]
    with np.load(camvid / "per_image.npz") as stored:
        arrays = dict(stored)
    arrays["intersection"] = arrays["intersection"][::-1] // 2
    np.savez(camvid / "per_image.npz", **arrays)
    (camvid / "protocol.json").write_text('{"version": 0}')
    (camvid / "metrics.json").unlink()
    _, errors = verify_own()
    for wrong in (
        "by its per-image scores",
        "protocol.json is not the protocol",
        "has no metrics.json",
    ):
        assert any(wrong in error for error in errors), errors


def verify_own():
    store = Store(f"sqlite:///{Path.cwd()}/mlflow.db")
    return verify(store, ["own"], lambda name, total: None, lambda: None)
