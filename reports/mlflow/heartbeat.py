"""Signs of life of a process: a status file with its progress, and tags of its MLflow runs.

``Heartbeat`` rewrites a status file while a unit of work runs.

``tags`` and ``alive`` tell whether the process that writes an MLflow run still runs. Each process
locks a file of its own until it ends, however it ends, and its runs name that file. On the same
machine the lock decides. Other machines rely on a time stamp that each open run repeats in MLflow
once a minute: the run counts as alive until the stamp is ``LIMIT`` seconds old.
"""

from __future__ import annotations

import functools
import json
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

from filelock import FileLock

from cliptex_common.files import home, read_json_object
from cliptex_common.locks import acquire_liveness_lock, is_locked, lock_path, locked

EVERY = 1.0  # seconds between two writes of a status file
LIMIT = 600.0  # age in seconds at which a time stamp of another machine no longer counts
MACHINE_TAG, LOCK_TAG, TIME_TAG = "process.machine", "process.lock", "heartbeat.time"


class Heartbeat:
    """A status file that shows how far this process is, rewritten once a second.

    Args:
        path: JSON; its folder is created. A full disk or a missing folder never ends the work.
        fields: initial content, anything that JSON holds; ``update`` changes it.
    """

    def __init__(self, path: Path, **fields: Any) -> None:
        self.path, self.fields = Path(path), fields
        self._writing = ExitStack()

    def update(self, **fields: Any) -> None:
        """Change fields; they are written with the next beat."""
        self.fields.update(fields)

    def __enter__(self) -> Heartbeat:
        with suppress(OSError):
            self.path.parent.mkdir(parents=True, exist_ok=True)
        self.write()
        self._writing.enter_context(repeating(self.write, EVERY))
        return self

    def __exit__(self, *error: object) -> None:
        self._writing.close()
        self.write()

    def write(self) -> None:
        """Write the file atomically."""
        temporary = self.path.with_name(f".{self.path.name}.{os.getpid()}")
        with suppress(OSError):
            temporary.write_text(json.dumps(self.fields, default=str), encoding="utf-8")
            temporary.replace(self.path)


def read(path: Path | str) -> dict[str, Any]:
    """The content of a status file; empty where it cannot be read."""
    return read_json_object(Path(path))


@contextmanager
def repeating(function: Callable[[], object], seconds: float) -> Iterator[None]:
    """Call ``function`` every ``seconds`` from a thread during the block, whatever it raises."""
    over = threading.Event()

    def repeat() -> None:
        while not over.wait(seconds):
            with suppress(Exception):
                function()

    thread = threading.Thread(target=repeat, name="heartbeat", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def tags() -> dict[str, str]:
    """The tags by which others see that this process is alive."""
    lock = _process_lock(os.getpid())
    return {MACHINE_TAG: machine(), LOCK_TAG: str(lock.lock_file), TIME_TAG: f"{time.time():.0f}"}


@functools.cache
def _process_lock(pid: int) -> FileLock:
    """The lock of the process ``pid``, this one, which the cache keeps until it ends."""
    with locked(lock_path("processes", "")):
        return acquire_liveness_lock(home().absolute() / "processes")


def alive(run_tags: Mapping[str, str]) -> bool:
    """Whether the process that wrote these tags may still run."""
    if run_tags.get(MACHINE_TAG) == machine():
        path = Path(run_tags[LOCK_TAG])
        return path.exists() and is_locked(path)
    return time.time() - float(run_tags.get(TIME_TAG, 0)) <= LIMIT


@functools.cache
def machine() -> str:
    """This machine or container until its next boot: host names alone repeat."""
    boot = ""
    with suppress(OSError):
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return f"{socket.gethostname()}/{boot}"
