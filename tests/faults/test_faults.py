"""A few points of the suites of ``make faults``."""

from __future__ import annotations

import random
import sqlite3
from contextlib import closing

import pytest

from tests.faults import disk, store
from tests.faults.kill import kill
from tests.faults.sandbox import Sandbox

pytestmark = pytest.mark.slow


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


def test_a_tuned_run_that_is_killed_anywhere_gives_the_same_numbers():
    random.seed(52)
    errors = dict(kill("tune", 3))
    assert len(errors) == 3 and not any(errors.values()), errors
