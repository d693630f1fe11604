"""Who uses a store of features: it is made by one process at a time, and not removed while another reads it."""

from __future__ import annotations

import os
import uuid
from pathlib import Path

from filelock import FileLock


def lock_path(folder: Path) -> Path:
    """The lock of whoever makes, opens or removes a store."""
    return folder.with_name(f"{folder.name}.lock")


def reading(folder: Path) -> FileLock:
    """A lock of a reader's own: what is locked in ``readers`` is in use. The caller holds the store's lock.

    Plain locks, one a reader, since filelock's own shared ones do not fit: ``ReadWriteLock`` is an SQLite database that a process
    forked from one that uses it (a loader) may not open, ``SoftReadWriteLock`` frees what a killed process held only after a
    while. Plain ones go with their process, and a forked one has no part in them (filelock 3.30 and later).
    """
    path = folder / "readers" / f"{os.getpid()}-{uuid.uuid4().hex}.lock"
    path.parent.mkdir(exist_ok=True)
    lock = FileLock(path, thread_local=False, fallback_to_soft=False)
    lock.acquire()
    return lock


def leave(lock: FileLock) -> None:
    """Let go of a lock of ``reading``; in a process that was forked meanwhile nothing happens: the lock is its parent's."""
    if lock.is_locked:
        Path(lock.lock_file).unlink(missing_ok=True)  # nobody waits for it
        lock.release()


def in_use(folder: Path) -> bool:
    """Whether a process has the store open. The caller holds the store's lock."""
    return any(map(_is_held, (folder / "readers").glob("*.lock")))


def _is_held(reader: Path) -> bool:
    lock = FileLock(reader, fallback_to_soft=False)
    try:
        lock.acquire(blocking=False)
    except OSError:  # ``Timeout`` among them
        return True
    lock.release()
    return False
