"""Opening a store: one process at a time, by a lock that nobody else can turn against the user."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import filelock
import pytest

from reports.errors import TrackingError
from reports.mlflow.client import _one_at_a_time, connect, known_schemas, scratch, tracking_uri
from reports.mlflow.run import Tracker


@pytest.fixture
def temporary(tmp_path, monkeypatch) -> Path:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


def test_one_at_a_time(temporary):
    with _one_at_a_time("sqlite:////a.db") as held:
        with pytest.raises(filelock.Timeout):
            _one_at_a_time("sqlite:////a.db").acquire(blocking=False)
        with _one_at_a_time("sqlite:////b.db"):
            pass
    assert Path(held.lock_file).exists()  # whoever waits for it waits for this very file
    (folder,) = temporary.iterdir()
    assert folder.stat().st_mode & 0o777 == 0o700


def test_a_planted_folder_is_refused_in_one_line_and_what_it_points_to_is_left_alone(temporary):
    with _one_at_a_time("x") as held:
        folder = Path(held.lock_file).parent
    name = Path(held.lock_file).name
    folder.rename(temporary / "away")
    (temporary / "theirs").mkdir()
    folder.symlink_to(temporary / "theirs")
    with pytest.raises(
        TrackingError, match=r"is no folder that only you can write; .* TMPDIR"
    ) as caught:
        connect(f"sqlite:///{temporary}/a.db")
    assert "\n" not in str(caught.value)
    assert not any((temporary / "theirs").iterdir())
    folder.unlink()
    folder.mkdir()
    folder.chmod(0o777)
    with pytest.raises(TrackingError):
        _one_at_a_time("x")
    folder.chmod(0o700)
    (temporary / "precious").write_text("precious")
    (folder / name).symlink_to(temporary / "precious")
    with pytest.raises(OSError), _one_at_a_time("x"):
        pass
    assert (temporary / "precious").read_text() == "precious"


def test_what_a_killed_process_left_goes_with_the_next(temporary):
    code = (
        "import os, sys, tempfile; tempfile.tempdir = sys.argv[1]\nfrom reports.mlflow.client"
        " import scratch\n"
    )
    code += "with scratch() as place: open(place + '/page', 'w').close(); os.kill(os.getpid(), 9)"
    subprocess.run([sys.executable, "-c", code, str(temporary)], timeout=60)
    (left,) = temporary.glob("cliptex-*/scratch-*")
    with scratch() as mine, scratch() as other:
        assert not left.exists() and Path(mine).is_dir() and Path(other).is_dir()
    assert not list(temporary.glob("cliptex-*/scratch-*"))


def run_here(uri: str) -> None:
    with Tracker("own", uri).run("one") as run:
        run.log_metrics({"x": 1.0})


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("store") / "mlflow.db"
    run_here(f"sqlite:///{path}")
    return path


@pytest.mark.parametrize("damage", ["junk", "cut", "flipped"])
def test_a_damaged_database_is_one_line(store, tmp_path, damage, capfd):
    data = bytearray(store.read_bytes())
    data[12288::5000] = bytes(b ^ 255 for b in data[12288::5000])
    found = {"junk": b"junk" * 1000, "cut": store.read_bytes()[:200_000], "flipped": bytes(data)}[
        damage
    ]
    (tmp_path / "a.db").write_bytes(found)
    with pytest.raises(TrackingError, match=r"^cannot use the MLflow store at .*a.db: .+; mend it"):
        run_here(f"sqlite:///{tmp_path}/a.db")
    assert capfd.readouterr() == ("", "")
    assert (tmp_path / "a.db").read_bytes() == found


def test_a_database_that_cannot_be_written_is_one_line(store, tmp_path, capfd, monkeypatch):
    import sqlalchemy

    def read_only(connection, _):
        connection.execute("pragma query_only = on")

    shutil.copy(store, tmp_path / "a.db")
    sqlalchemy.event.listen(sqlalchemy.engine.Engine, "connect", read_only)
    try:
        with pytest.raises(
            TrackingError,
            match=r"failed \(\(sqlite3.OperationalError\) attempt to write a readonly database\)",
        ):
            run_here(f"sqlite:///{tmp_path}/a.db")
    finally:
        sqlalchemy.event.remove(sqlalchemy.engine.Engine, "connect", read_only)
    assert capfd.readouterr() == ("", "")


def test_a_database_that_another_program_locks_is_waited_for(store):
    import sqlalchemy

    connect(f"sqlite:///{store}")
    with sqlalchemy.create_engine(f"sqlite:///{store}").connect() as connection:
        assert connection.exec_driver_sql("pragma busy_timeout").scalar() == 60_000


def test_a_new_database_is_there_whole_or_not_at_all(tmp_path, monkeypatch):
    def killed(client, **_):
        Path(client.tracking_uri.removeprefix("sqlite:///")).write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr("mlflow.tracking.MlflowClient.search_experiments", killed)
    with pytest.raises(KeyboardInterrupt):
        connect(f"sqlite:///{tmp_path}/a.db")
    assert not list(tmp_path.iterdir())


def test_no_secret_reaches_the_store(store):
    with Tracker("own", f"sqlite:///{store}").run(
        "http://TOKEN@host", tags={"a": "http://me:hunter22@host"}
    ) as run:
        run.log_params({"b": "x://me:hunter22@host"})
        run.set_tags({"c": "see x://h?password=hunter22"})
        run.describe("by http://me:hunter22@host")
        run.log_dataset("d", "1", "testing", source="https://me:hunter22@host/d")
        run.log_json({"uri": "http://me:hunter22@host"}, "e.json")
        run.fail("cannot reach http://me:hunter22@host")
    artifacts = Path(run.tracker.client.get_run(run.id).info.artifact_uri.removeprefix("file://"))
    kept = store.read_bytes() + (artifacts / "e.json").read_bytes()
    assert (
        b"hunter22" not in kept and b"TOKEN" not in kept and b"cannot reach http://***@host" in kept
    )


def test_known_schemas_are_those_of_alembic():
    from alembic.script import ScriptDirectory
    from mlflow.store.db.utils import _get_alembic_config

    script = ScriptDirectory.from_config(_get_alembic_config("sqlite:///none.db"))
    assert known_schemas()[::-1] == [revision.revision for revision in script.walk_revisions()]


@pytest.mark.parametrize("name", ["a?b", "a#b", "a%20b"])
def test_a_folder_that_no_address_can_hold_is_refused(name, tmp_path, monkeypatch):
    (tmp_path / name).mkdir()
    monkeypatch.chdir(tmp_path / name)
    with pytest.raises(
        TrackingError, match=r"^the address of a database cannot hold the '[?#%]' of the folder"
    ):
        tracking_uri("sqlite:///mlflow.db")
    assert tracking_uri("sqlite:////tmp/a.db") == "sqlite:////tmp/a.db"


def test_a_folder_that_is_gone(tmp_path, monkeypatch):
    (tmp_path / "a").mkdir()
    monkeypatch.chdir(tmp_path / "a")
    (tmp_path / "a").rmdir()
    with pytest.raises(TrackingError, match="the working folder was removed"):
        tracking_uri(None if "MLFLOW_TRACKING_URI" not in os.environ else "sqlite:///a.db")
