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
from cliptex_common.files import content_key, home


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
        reason = getattr(error, "strerror", None) or "no locks (flock) there"
        advice = "set CLIPTEX_HOME to a folder of a local disk"
        raise UserError(f"cannot lock {path}: {reason}; {advice}") from error
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


def acquire_liveness_lock(folder: Path) -> FileLock:
    """A new lock of this process in ``folder``: while it is held, the process is alive and uses
    what the folder stands for. Locks there of processes that have ended are removed, so call it
    under a lock of the folder.

    Not one of filelock's shared locks: ``ReadWriteLock`` is an SQLite database that a forked
    process (a data loader) may not open, and ``SoftReadWriteLock`` outlives a killed process.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for path in folder.glob("*.lock"):
        if not is_locked(path):
            path.unlink(missing_ok=True)
    path = folder / f"{os.getpid()}-{uuid.uuid4().hex}.lock"
    lock = FileLock(path, thread_local=False, fallback_to_soft=False)
    lock.acquire()
    return lock


def release_liveness_lock(lock: FileLock) -> None:
    """Release a lock of ``acquire_liveness_lock``; does nothing in a forked child."""
    if lock.is_locked:
        Path(lock.lock_file).unlink(missing_ok=True)  # nobody waits for it
        lock.release()


def is_locked(path: Path) -> bool:
    """Whether a process holds a lock of ``acquire_liveness_lock``."""
    lock = FileLock(path, fallback_to_soft=False)
    try:
        lock.acquire(blocking=False)
    except OSError:  # includes Timeout
        return True
    lock.release()
    return False


def is_in_use(folder: Path) -> bool:
    """Whether a process holds a liveness lock in ``folder``."""
    return any(map(is_locked, folder.glob("*.lock")))


_in_use: dict[tuple[int, Path], FileLock] = {}  # by process and path


def mark_in_use(path: Path) -> None:
    """Keep ``path`` from being removed until this process ends (see ``guard_removal``)."""
    key = os.getpid(), path.absolute()
    with locked(lock_path("users", "")):
        if key not in _in_use:
            _in_use[key] = acquire_liveness_lock(_users(path))


@contextmanager
def guard_removal(path: Path) -> Iterator[bool]:
    """Yield whether ``path`` may be removed: no process uses it, or starts to during the block."""
    with locked(lock_path("users", "")):
        yield not is_in_use(_users(path))


def _users(path: Path) -> Path:
    """Folder of the liveness locks of the processes that use ``path``."""
    return home() / "users" / content_key(str(path.absolute()))
