"""Optuna storages that several workers share: SQLite with safe settings, PostgreSQL for many machines."""

from __future__ import annotations

import fcntl
import hashlib
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import optuna
import sqlalchemy
from optuna.storages import RDBStorage
from sqlalchemy import event

from sweeps.errors import NoSweep, SweepError

DEFAULT_STORAGE = "sqlite:///sweeps.db"
SQLITE_WAIT = 60.0  # seconds that a writer waits for another one
optuna.logging.set_verbosity(optuna.logging.ERROR)


def storage_url(given: str | None) -> str:
    """The storage's address in full: an absolute path for SQLite, the installed driver for PostgreSQL.

    Raises:
        SweepError: neither SQLite nor PostgreSQL, or no driver for it.
    """
    url = given or DEFAULT_STORAGE
    scheme, separator, rest = url.partition("://")
    if not separator:
        raise SweepError(f"--storage {url!r} is no database address; use sqlite:///FILE.db or postgresql://HOST/NAME")
    if scheme == "sqlite":
        path = rest.removeprefix("/")
        if not path or path == ":memory:":
            raise SweepError("--storage sqlite:// needs a file that workers can share: sqlite:///sweeps.db")
        return f"sqlite:///{Path(path).expanduser().absolute()}"
    if scheme in ("postgres", "postgresql"):
        scheme = "postgresql+psycopg" if find_spec("psycopg2") is None else "postgresql"
    if not scheme.startswith("postgresql"):
        raise SweepError(f"--storage {scheme}://…: only sqlite:///FILE.db and postgresql://… are tested here")
    if scheme == "postgresql+psycopg" and find_spec("psycopg") is None:
        raise SweepError("no PostgreSQL driver: pip install 'cliptex-benchmark[scale]'")
    return f"{scheme}://{rest}"


def sqlite_path(url: str) -> Path | None:
    """The file behind a SQLite address, None for a server."""
    return Path(url.removeprefix("sqlite:///")) if url.startswith("sqlite:///") else None


def open_storage(url: str, *, heartbeat: int, grace: int, create: bool) -> RDBStorage:
    """The storage at ``url`` (from ``storage_url``).

    Args:
        heartbeat: seconds between signs of life of a running trial.
        grace: seconds without one after which a trial counts as lost.
        create: make the schema when there is none; otherwise a storage without one is an error.

    Raises:
        SweepError: it cannot be reached, is no Optuna storage, or belongs to another version of Optuna.
    """
    path = sqlite_path(url)
    shown = hide(url)
    if path is not None and not path.exists():
        if not create:
            raise NoSweep(f"no sweeps at {shown}; start one with `sweep launch`, or name another --storage")
        if not path.parent.is_dir():
            raise SweepError(f"--storage {shown}: there is no folder {path.parent}")
    arguments: dict[str, Any] = {"pool_pre_ping": True}
    if path is not None:
        # Without these, two processes can both read "waiting" and both take the trial: pysqlite begins a transaction
        # only at the first write. BEGIN IMMEDIATE makes each read-then-write of Optuna one step; readers wait milliseconds.
        arguments = {"connect_args": {"timeout": SQLITE_WAIT, "isolation_level": None}}
    elif url.startswith("postgresql"):
        arguments["connect_args"] = {"connect_timeout": 10}
    try:
        with _schema_lock(url):  # two processes that make the same tables break each other
            if not create:
                _must_have_schema(url, shown)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
                storage = RDBStorage(url, arguments, heartbeat_interval=heartbeat, grace_period=grace)
            if path is not None:
                event.listen(storage.engine, "connect", _on_connect)
                event.listen(storage.engine, "begin", _on_begin)
                storage.engine.dispose()  # the connection that made the tables has none of these settings
    except SweepError:
        raise
    except Exception as error:
        lines = str(error.__cause__ or error).strip().splitlines() or [type(error).__name__]
        raise SweepError(
            f"cannot use the storage {shown}: {lines[0][:200]}; start it, or name another --storage"
        ) from error
    return storage


def _on_connect(connection: Any, record: Any) -> None:
    cursor = connection.cursor()
    cursor.execute("pragma journal_mode=wal")  # readers (status, the dashboard) never block writers
    cursor.execute("pragma synchronous=normal")
    cursor.close()


def _on_begin(connection: Any) -> None:
    connection.exec_driver_sql("BEGIN IMMEDIATE")


def _must_have_schema(url: str, shown: str) -> None:
    engine = sqlalchemy.create_engine(url)
    try:
        if not sqlalchemy.inspect(engine).has_table("studies"):
            raise NoSweep(f"no sweeps at {shown}; start one with `sweep launch`, or name another --storage")
    finally:
        engine.dispose()


@contextmanager
def _schema_lock(url: str) -> Iterator[None]:
    path = sqlite_path(url)
    if path is not None:
        with _file_lock(path):
            yield
        return
    engine = sqlalchemy.create_engine(url, connect_args={"connect_timeout": 10})
    try:
        with engine.begin() as connection:
            _advisory_lock(connection, "cliptex sweeps schema")
            yield
    finally:
        engine.dispose()


@contextmanager
def exclusive(storage: RDBStorage, name: str) -> Iterator[None]:
    """Only one process at a time, on any machine, is inside for the study ``name``.

    The lock is the system's (a lock on a file beside a SQLite database, an advisory lock of PostgreSQL), so it goes with the
    process that held it, however that ended.

    Raises:
        SweepError: the storage does not answer (any more).
    """
    path = sqlite_path(storage.url)
    try:
        if path is not None:
            with _file_lock(path):
                yield
        else:
            with storage.engine.connect() as connection, connection.begin():
                _advisory_lock(connection, f"cliptex sweep {name}")
                yield
    except (optuna.exceptions.StorageInternalError, sqlalchemy.exc.OperationalError) as error:
        told = str(error.__cause__ or error).strip().splitlines()[0][:200]
        raise SweepError(
            f"lost the storage {hide(storage.url)}: {told}; when it is back, the same command goes on"
        ) from error


@contextmanager
def _file_lock(path: Path) -> Iterator[None]:
    try:
        lock = path.with_name(f"{path.name}.lock").open("w")
    except OSError as error:
        raise SweepError(f"cannot write beside {path}: {error.strerror}; choose another --storage") from error
    with lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _advisory_lock(connection: Any, text: str) -> None:
    key = int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], signed=True)
    connection.execute(sqlalchemy.text("select pg_advisory_xact_lock(:key)"), {"key": key})


def hide(url: str) -> str:
    """The address without its password."""
    from reports.store import hide_password

    return hide_password(url)
