"""Storages of studies, all of them Optuna's: an SQLite file, PostgreSQL, a journal file."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import optuna
import sqlalchemy
from filelock import FileLock
from optuna.storages import BaseStorage, JournalStorage, RDBStorage
from optuna.storages.journal import JournalFileBackend

from cliptex_common.errors import UserError, first_line
from cliptex_common.locks import lock_path, locked
from cliptex_common.secrets import hide_secrets, redact, remember_secrets
from sweeps.errors import NoSweep

DEFAULT_STORAGE = "sqlite:///sweeps.db"
WAIT = 60.0  # seconds to wait for another writer of an SQLite file
optuna.logging.set_verbosity(optuna.logging.ERROR)


def storage_url(storage: str | None) -> str:
    """The storage's complete address: with an absolute path, or the installed PostgreSQL driver.

    Raises:
        UserError: it is not an address of SQLite, PostgreSQL or a journal.
    """
    url = storage or DEFAULT_STORAGE
    remember_secrets(url)
    if "://" not in url and url.endswith((".log", ".journal")):
        url = f"journal:///{url}"
    scheme, _, rest = url.partition("://")
    if scheme in ("sqlite", "journal") and rest.strip("/"):
        return f"{scheme}:///{Path(rest.removeprefix('/')).expanduser().absolute()}"
    if scheme in ("postgres", "postgresql"):
        return f"postgresql+psycopg://{rest}"
    if scheme.startswith("postgresql+"):
        return url
    raise UserError(
        f"--storage {redact(url)!r} is not supported; use sqlite:///FILE.db,"
        " postgresql://HOST/NAME or journal:///FILE.log"
    )


def open_storage(url: str, *, create: bool) -> BaseStorage:
    """The storage at ``url`` (from ``storage_url``).

    Raises:
        NoSweep: it does not exist, and ``create`` is False.
        UserError: it cannot be reached, or is not a storage of this version of Optuna.
    """
    shown, path = hide_secrets(url), Path(url.partition(":///")[2])
    is_file = url.startswith(("sqlite:", "journal:"))
    if is_file and not create and not path.exists():
        raise NoSweep(
            f"no sweeps at {shown}; start one with `sweep launch`, or name another --storage"
        )
    try:
        # two processes that create the same tables break each other
        with locked(lock_path("sweeps", shown)):
            if url.startswith("journal:"):
                return JournalStorage(_journal(path))
            wait = {"timeout": WAIT} if is_file else {"connect_timeout": 10}
            return RDBStorage(url, {"pool_pre_ping": True, "connect_args": wait})
    except UserError:
        raise
    except Exception as error:
        raise UserError(
            f"cannot use the storage {shown}: {_reason(error)}; start it, or name another --storage"
        ) from error


def _journal(path: Path) -> JournalFileBackend:
    # The operating system releases this lock with its process; Optuna's own outlives it.
    lock = FileLock(path.with_name(f"{path.name}.flock"), fallback_to_soft=False)
    with lock:
        text = path.read_bytes() if path.exists() else b""
        if text and b'"op_code"' not in text.partition(b"\n")[0]:
            raise UserError(f"{path} is not a journal of Optuna; name another --storage")
        if not text.endswith(b"\n"):  # a killed write, which makes the next lines unreadable
            with path.open("ab"):
                os.truncate(path, text.rfind(b"\n") + 1)
    return JournalFileBackend(str(path), lock)  # type: ignore[arg-type]


@contextmanager
def answering(url: str) -> Iterator[None]:
    """Raise ``UserError`` when the storage stops answering in the block."""
    try:
        yield
    except (optuna.exceptions.StorageInternalError, sqlalchemy.exc.DBAPIError) as error:
        raise UserError(
            f"lost the storage {hide_secrets(url)}: {_reason(error)}; repair it and run the same"
            " command again"
        ) from error


def _reason(error: BaseException) -> str:
    return redact(first_line(error.__cause__ or error))
