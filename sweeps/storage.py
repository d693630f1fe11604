"""Where studies are kept: any storage of Optuna's – an SQLite file, PostgreSQL, a journal file."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import optuna
import sqlalchemy
from filelock import FileLock
from optuna.storages import BaseStorage, JournalStorage, RDBStorage
from optuna.storages.journal import JournalFileBackend

from common.errors import UserError
from common.locks import lock_path, locked
from common.secrets import hide_secrets, redact, remember_secrets
from sweeps.errors import NoSweep

DEFAULT_STORAGE = "sqlite:///sweeps.db"
# seconds that a writer of SQLite waits for another one: the driver, or a training that reports for
# pruning
WAIT = 60.0
optuna.logging.set_verbosity(optuna.logging.ERROR)


def storage_url(given: str | None) -> str:
    """The storage's address in full: an absolute path for a file, the installed driver for
    PostgreSQL. Raises ``UserError`` for another kind than those tested here, or without a driver
    for it."""
    url = given or DEFAULT_STORAGE
    remember_secrets(url)
    if "://" not in url and url.endswith((".log", ".journal")):
        url = f"journal:///{url}"
    scheme, separator, rest = url.partition("://")
    if not separator:
        raise UserError(
            f"--storage {redact(url)!r} is no address; use sqlite:///FILE.db,"
            " postgresql://HOST/NAME or journal:///FILE.log"
        )
    if scheme in ("sqlite", "journal"):
        path = rest.removeprefix("/")
        if not path or path == ":memory:":
            raise UserError(f"--storage {scheme}:// needs a file: {scheme}:///sweeps.db")
        full = str(Path(path).expanduser().absolute())
        if scheme == "sqlite" and (found := re.findall(r"[?#%]", full)):
            raise UserError(
                f"--storage: the address of a database cannot hold the {found[0]!r} of {full};"
                " choose another place"
            )
        return f"{scheme}:///{full}"
    if scheme in ("postgres", "postgresql"):
        scheme = "postgresql+psycopg" if find_spec("psycopg2") is None else "postgresql"
    if not scheme.startswith("postgresql"):
        raise UserError(
            f"--storage {scheme}://…: only sqlite, postgresql and journal are tested here"
        )
    if scheme == "postgresql+psycopg" and find_spec("psycopg") is None:
        raise UserError("no PostgreSQL driver: pip install 'cliptex-benchmark[scale]'")
    return f"{scheme}://{rest}"


def open_storage(url: str, *, create: bool) -> BaseStorage:
    """The storage at ``url`` (from ``storage_url``); without ``create`` one that is not there is an
    error.

    Raises:
        UserError: it cannot be reached, is no Optuna storage, or belongs to another version of
            Optuna.
    """
    shown, path = hide_secrets(url), Path(url.partition(":///")[2])
    file = url.startswith(("sqlite:", "journal:"))
    absent = NoSweep(
        f"no sweeps at {shown}; start one with `sweep launch`, or name another --storage"
    )
    if file and not create and not path.exists():
        raise absent
    if file and not path.parent.is_dir():
        raise UserError(f"--storage {shown}: there is no folder {path.parent}")
    try:
        with locked(
            lock_path("sweeps", shown)
        ):  # two processes that make the same tables break each other
            if url.startswith("journal:"):
                return JournalStorage(_journal(path))
            wait: dict[str, Any] = {"timeout": WAIT} if file else {"connect_timeout": 10}
            engine = sqlalchemy.create_engine(url, connect_args=wait)
            if not create and not sqlalchemy.inspect(engine).has_table("studies"):
                raise absent
            engine.dispose()
            return RDBStorage(url, {"pool_pre_ping": True, "connect_args": wait})
    except UserError:
        raise
    except Exception as error:
        raise UserError(
            f"cannot use the storage {shown}: {_told(error)}; start it, or name another --storage"
        ) from error


def _journal(path: Path) -> JournalFileBackend:
    # A lock of the system's goes with its process; Optuna's own stays behind when one is killed,
    # and is waited for.
    lock = FileLock(path.with_name(f"{path.name}.flock"), fallback_to_soft=False)
    with lock:
        text = path.read_bytes() if path.exists() else b""
        first, _, _ = text.partition(b"\n")
        if text and b'"op_code"' not in first:  # somebody's other file, which must stay as it is
            raise UserError(f"{path} is no journal of Optuna; name another --storage")
        if text and not text.endswith(
            b"\n"
        ):  # a writer was killed in the middle of a line: nothing could be read after it
            os.truncate(path, text.rfind(b"\n") + 1)
    return JournalFileBackend(str(path), lock)  # type: ignore[arg-type]


@contextmanager
def answering(url: str) -> Iterator[None]:
    """A storage that does not answer any more is one line: ``UserError``."""
    try:
        yield
    except (optuna.exceptions.StorageInternalError, sqlalchemy.exc.DBAPIError) as error:
        told = f"lost the storage {hide_secrets(url)}: {_told(error)}"
        raise UserError(f"{told}; when it is back, the same command goes on") from error


def _told(error: BaseException) -> str:
    lines = str(error.__cause__ or error).strip().splitlines() or [type(error).__name__]
    return redact(lines[0])[:200]
