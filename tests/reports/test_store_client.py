"""Opening a store: errors of one line, no half databases, no secrets."""

from __future__ import annotations

import re
import shutil
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest
import sqlalchemy

from reports.records import TrackingError
from reports.store import connect, create_database, open_mlflow, tracking_uri
from reports.tracking import Tracker
from tests.forks import Fork

pytestmark = pytest.mark.integration


@pytest.fixture(autouse=True)
def really_created(monkeypatch):
    monkeypatch.setattr("reports.store.create_database", create_database)


def write(uri: str) -> None:
    with Tracker("own", uri).run("name") as run:
        run.log_metrics({"x": 1.0})


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("store") / "mlflow.db"
    write(f"sqlite:///{path}")
    return path


@pytest.fixture
def copy(store, tmp_path) -> Path:
    return Path(shutil.copy(store, tmp_path / "copy.db"))


def with_newer_schema(path: Path) -> None:
    with closing(sqlite3.connect(path)) as database:
        database.execute("update alembic_version set version_num = 'ffffffffffff'")
        database.commit()


def with_damaged_page(path: Path) -> None:
    with closing(sqlite3.connect(path)) as database:
        (size,) = database.execute("pragma page_size").fetchone()
        query = "select rootpage from sqlite_master where name = 'tags'"
        (page,) = database.execute(query).fetchone()
    with path.open("r+b") as file:
        file.seek((page - 1) * size)
        file.write(b"\xff" * size)


UNUSABLE = r"^cannot use the MLflow store at .*copy.db: .+"


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        pytest.param(lambda path: path.write_bytes(b"junk" * 1000), UNUSABLE, id="junk"),
        pytest.param(
            lambda path: path.write_bytes(path.read_bytes()[:200_000]), UNUSABLE, id="cut"
        ),
        (with_newer_schema, "database schema"),
        (with_damaged_page, r"^the MLflow store at .*malformed.*repair"),
    ],
)
def test_a_store_that_cannot_be_used_is_one_line_and_not_replaced(copy, damage, message, capfd):
    damage(copy)
    content = copy.read_bytes()
    with pytest.raises(TrackingError, match=message) as caught:
        list(Tracker("own", f"sqlite:///{copy}").search("attributes.status = 'FINISHED'"))
    assert "\n" not in str(caught.value) and capfd.readouterr() == ("", "")
    assert copy.read_bytes() == content


def test_a_database_that_cannot_be_written_is_one_line(copy, capfd):
    content = bytearray(copy.read_bytes())
    content[18] = 3  # the format for writing: SQLite reads files of newer ones only
    copy.write_bytes(content)
    with pytest.raises(TrackingError, match=r"failed .*attempt to write a readonly database"):
        write(f"sqlite:///{copy}")
    assert capfd.readouterr() == ("", "")


def test_a_locked_database_is_waited_for(store):
    open_mlflow(f"sqlite:///{store}")
    with sqlalchemy.create_engine(f"sqlite:///{store}").connect() as connection:
        assert connection.exec_driver_sql("pragma busy_timeout").scalar() == 60_000


def test_a_killed_creation_leaves_no_database(tmp_path, monkeypatch):
    def killed(client, **_):
        Path(client.tracking_uri.removeprefix("sqlite:///")).write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr("reports.store.newest_schemas", lambda: ["newer"])  # MLflow creates it
    monkeypatch.setattr("mlflow.tracking.MlflowClient.search_experiments", killed)
    with pytest.raises(KeyboardInterrupt):
        connect(f"sqlite:///{tmp_path}/a.db")
    assert not list(tmp_path.iterdir())


def test_another_schema_is_created_by_mlflow(tmp_path, monkeypatch):
    monkeypatch.setattr("reports.store.newest_schemas", lambda: ["newer"])
    write(f"sqlite:///{tmp_path}/a.db")
    assert [path.name for path in tmp_path.iterdir() if path.is_file()] == ["a.db"]


def test_processes_may_create_the_same_store_at_once(tmp_path):
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    both = [Fork(Tracker, "new", uri, output=tmp_path / f"output-{i}") for i in range(2)]
    assert [fork.end() for fork in both] == [0, 0], [fork.text() for fork in both]


@pytest.mark.parametrize(
    ("uri", "message"),
    [
        ("sqlite:////proc/a.db", r"cannot use .*/proc/a\.db: \[Errno"),
        ("sqlite:////no/such/folder/mlflow.db", "cannot use the MLflow store"),
        ("http://127.0.0.1:9", "cannot use the MLflow store"),
        ("./mlruns", "file stores are refused"),
    ],
)
def test_a_store_that_cannot_be_reached_is_one_line(uri, message):
    with pytest.raises(TrackingError, match=message):
        connect(tracking_uri(uri))


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
    content = store.read_bytes() + (artifacts / "e.json").read_bytes()
    assert b"hunter22" not in content and b"TOKEN" not in content
    assert b"cannot reach http://***@host" in content


def statements(path: Path) -> list[list[str]]:
    """The words of each statement that makes a database, sorted: MLflow orders constraints
    and indexes anew each time."""
    with closing(sqlite3.connect(path)) as database:
        return sorted(sorted(re.findall(r"[\w']+", text)) for text in database.iterdump())


def test_a_database_is_as_mlflow_itself_creates_it(tmp_path):
    """If MLflow has a newer schema, ``reports/mlflow.sql`` is unused, and to be written again by
    ``iterdump`` of the database that is created here."""
    from mlflow.store.db.utils import _initialize_tables

    engine = sqlalchemy.create_engine(f"sqlite:///{tmp_path}/theirs.db")
    _initialize_tables(engine)
    engine.dispose()
    create_database(tmp_path / "ours.db")
    with closing(sqlite3.connect(tmp_path / "ours.db")) as database:
        rows = database.execute("delete from experiments returning experiment_id, name").fetchall()
        database.commit()
    assert rows == [(0, "Default")], "which MLflow creates with its first client"
    ours, theirs = (statements(tmp_path / name) for name in ("ours.db", "theirs.db"))
    assert ours == theirs
    with Tracker("own", f"sqlite:///{tmp_path}/ours.db").run("name", params={"x": 1}) as run:
        run.log_metrics({"y": 1.0})
    stored = open_mlflow(f"sqlite:///{tmp_path}/ours.db").get_run(run.id)
    assert (stored.data.params, stored.data.metrics) == ({"x": "1"}, {"y": 1.0})
