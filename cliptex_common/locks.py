"""One process at a time: locks under ``$CLIPTEX_HOME``, by ``filelock``.

A lock is the operating system's (``flock``), so it ends with its process. Lock files are never
removed: that would let a second process in beside one that waits. After a wait, look again for the
result: the process that held the lock has probably created it.
"""

from __future__ import annotations

import asyncio
import os
import uuid
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import ExitStack, asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

from filelock import BaseFileLock, FileLock, Timeout

from cliptex_common.errors import UserError
from cliptex_common.files import content_key, home, read_json_object, write_json


def lock_path(name: str, subject: object) -> Path:
    """``$CLIPTEX_HOME/locks/NAME-KEY.lock``, KEY from the content of ``subject``."""
    return home() / "locks" / f"{name}-{content_key(subject)}.lock"


@contextmanager
def locked(
    path: Path, on_wait: Callable[[], None] = lambda: None, *, wait: bool = True
) -> Iterator[None]:
    """Hold the lock during the block.

    Args:
        path: see ``lock_path``.
        on_wait: called once if another process has the lock.

    Raises:
        UserError: the folder cannot be written, or its file system has no locks.
        Timeout: another process has the lock, and ``wait`` is False.
    """
    lock = FileLock(path, fallback_to_soft=False)
    if not _acquire(lock, path, blocking=False):
        if not wait:
            raise Timeout(str(path))
        on_wait()
        _acquire(lock, path, poll_interval=0.1)
    try:
        yield
    finally:
        lock.release()


def _acquire(lock: BaseFileLock, path: Path, **options: Any) -> bool:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock.acquire(**options)
    except Timeout:  # an OSError too
        return False
    except (OSError, NotImplementedError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise UserError(
            f"cannot lock {path}: {reason}; set CLIPTEX_HOME to a folder that you can write, on a"
            " file system with locks (flock)"
        ) from error
    return True


@asynccontextmanager
async def locked_async(
    path: Path, on_wait: Callable[[], None] = lambda: None
) -> AsyncIterator[None]:
    """``locked`` for a coroutine: other coroutines continue while it waits."""
    waited = False
    with ExitStack() as stack:
        while True:
            try:
                stack.enter_context(locked(path, wait=False))
                break
            except Timeout:
                if not waited:
                    on_wait()
                waited = True
                await asyncio.sleep(0.1)
        yield


def acquire_reader_lock(folder: Path) -> FileLock:
    """A new lock in ``folder`` for one reader; while any lock there is held, the data is in use.

    Not one of filelock's shared locks: ``ReadWriteLock`` is an SQLite database that a forked
    process (a data loader) may not open, and ``SoftReadWriteLock`` outlives a killed process.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{os.getpid()}-{uuid.uuid4().hex}.lock"
    lock = FileLock(path, thread_local=False, fallback_to_soft=False)
    lock.acquire()
    return lock


def release_reader_lock(lock: FileLock) -> None:
    """Release a lock of ``acquire_reader_lock``; does nothing in a forked child."""
    if lock.is_locked:
        Path(lock.lock_file).unlink(missing_ok=True)  # nobody waits for it
        lock.release()


def is_locked(reader: Path) -> bool:
    """Whether a process holds a lock of ``acquire_reader_lock``."""
    lock = FileLock(reader, fallback_to_soft=False)
    try:
        lock.acquire(blocking=False)
    except OSError:  # includes Timeout
        return True
    lock.release()
    return False


_in_use: dict[tuple[int, Path], tuple[FileLock, set[str]]] = {}  # by process and folder


def mark_in_use(path: Path) -> None:
    """Keep ``path`` from being removed until this process ends (see ``guard_removal``)."""
    key = os.getpid(), home().absolute() / "users"
    with locked(lock_path("users", "")):
        if key not in _in_use:
            _in_use[key] = acquire_reader_lock(key[1]), set()
        lock, paths = _in_use[key]
        if str(path.absolute()) not in paths:
            paths.add(str(path.absolute()))
            write_json(Path(lock.lock_file).with_suffix(".json"), {"paths": sorted(paths)})


@contextmanager
def guard_removal(path: Path) -> Iterator[bool]:
    """Yield whether ``path`` may be removed: no process uses it, or starts to during the block."""
    with locked(lock_path("users", "")):
        used: set[str] = set()
        for reader in (home().absolute() / "users").glob("*.lock"):
            paths = reader.with_suffix(".json")
            if is_locked(reader):
                used |= set(read_json_object(paths).get("paths", ()))
            else:  # its process has ended
                paths.unlink(missing_ok=True)
                reader.unlink(missing_ok=True)
        yield str(path.absolute()) not in used
