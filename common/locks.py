"""One process at a time: locks on ``$CLIPTEX_HOME``, by ``filelock``.

A lock is the operating system's (``flock``), so it goes with its process, however that ends. A lock
file stays where it is: whoever removed it would let a second process in beside one that waits.
Whoever had to wait looks again for what he wanted to
make: the one before him has probably made it.
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

from common.errors import UserError
from common.files import content_key, home, read_json_object, write_json


def lock_path(name: str, what: object) -> Path:
    """Where the lock on ``what`` lies: ``$CLIPTEX_HOME/locks/NAME-KEY.lock``, KEY from the content
    of ``what``."""
    return home() / "locks" / f"{name}-{content_key(what)}.lock"


@contextmanager
def locked(
    path: Path, waiting: Callable[[], None] = lambda: None, *, wait: bool = True
) -> Iterator[bool]:
    """While the block runs, no other process is in a block with the same lock file; yields whether
    there was a wait.

    Args:
        path: see ``lock_path``.
        waiting: called once when another process has the lock.

    Raises:
        UserError: no lock can be had there (a folder that cannot be written, a file system without
            locks).
        Timeout: the lock is another process's, and ``wait`` is False.
    """
    lock = FileLock(path, fallback_to_soft=False)
    waited = not _acquired(lock, path, blocking=False)
    if waited:
        if not wait:
            raise Timeout(str(path))
        waiting()
        _acquired(lock, path, poll_interval=0.1)
    try:
        yield waited
    finally:
        lock.release()


def _acquired(lock: BaseFileLock, path: Path, **how: Any) -> bool:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock.acquire(**how)
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
    path: Path, waiting: Callable[[], None] = lambda: None
) -> AsyncIterator[bool]:
    """``locked`` for a coroutine: others go on while it waits, the one that has the lock among
    them."""
    waited = False
    with ExitStack() as held:
        while True:
            try:
                held.enter_context(locked(path, wait=False))
                break
            except Timeout:
                if not waited:
                    waiting()
                waited = True
                await asyncio.sleep(0.1)
        yield waited


def acquire_reader_lock(folder: Path) -> FileLock:
    """A lock of a reader's own, in ``folder``: while one there is locked, what it stands for is in
    use.

    Plain locks, one a reader, since filelock's own shared ones do not fit: ``ReadWriteLock`` is an
    SQLite database that a process forked from one that uses it (a loader) may not open,
    ``SoftReadWriteLock`` frees what a killed process held only after a while. Plain ones go with
    their process, and a forked one has no part in them (filelock 3.30 and later).
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
    except OSError:  # ``Timeout`` among them
        return True
    lock.release()
    return False


_uses: dict[tuple[int, Path], tuple[FileLock, set[str]]] = {}


def mark_in_use(path: Path) -> None:
    """Keep ``path`` from being removed until this process ends (see ``guard_removal``)."""
    key = os.getpid(), home().absolute() / "users"
    with locked(lock_path("users", "")):
        if key not in _uses:
            _uses[key] = acquire_reader_lock(key[1]), set()
        lock, paths = _uses[key]
        if str(path.absolute()) not in paths:
            paths.add(str(path.absolute()))
            write_json(Path(lock.lock_file).with_suffix(".json"), {"paths": sorted(paths)})


@contextmanager
def guard_removal(path: Path) -> Iterator[bool]:
    """Whether ``path`` may be removed in the block: no process keeps it, and none begins to
    meanwhile."""
    with locked(lock_path("users", "")):
        kept: set[str] = set()
        for reader in (home().absolute() / "users").glob("*.lock"):
            if is_locked(reader):
                kept |= set(read_json_object(reader.with_suffix(".json")).get("paths", ()))
            else:  # its process has ended
                reader.with_suffix(".json").unlink(missing_ok=True)
                reader.unlink(missing_ok=True)
        yield str(path.absolute()) not in kept
