"""One maker of a thing at a time on this machine."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from io import TextIOWrapper
from pathlib import Path

from benchmark.progress import Lane


@contextmanager
def alone(out: Path, bar: Lane) -> Iterator[None]:
    """While the block runs no other process makes ``out`` (a file or folder); who comes second waits, and finds it made.

    The lock goes with its process, however that ends, and its file with the block. Where no lock can be had (a folder that
    may only be read, a file system without locks) the block runs all the same.

    Args:
        bar: told when there is somebody to wait for.
    """
    path = out.with_name(f".{out.name}.lock")
    try:
        lock = _locked(path, bar)
    except OSError:
        yield
        return
    try:
        yield
    finally:
        path.unlink(missing_ok=True)
        fcntl.flock(lock, fcntl.LOCK_UN)  # loading processes that were forked meanwhile have it open too
        lock.close()


def _locked(path: Path, bar: Lane) -> TextIOWrapper:
    path.parent.mkdir(parents=True, exist_ok=True)
    while True:
        lock = path.open("w")
        try:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                bar.start(f"another process makes {path.name[1:].removesuffix('.lock')}: waiting for it", 1)
                fcntl.flock(lock, fcntl.LOCK_EX)
            if _is(path, lock.fileno()):
                return lock
        except BaseException:
            lock.close()
            raise
        lock.close()  # who had it took its file away: this would be the lock of nothing


def _is(path: Path, descriptor: int) -> bool:
    """Whether the open file is still the one at ``path``."""
    try:
        return os.path.samestat(path.stat(), os.fstat(descriptor))
    except FileNotFoundError:
        return False
