"""Signs of life of a process in tags of its MLflow runs.

``process_tags`` and ``is_alive`` tell whether the process that writes a run still runs. Each
process locks a file of its own until it ends, however it ends, and its runs name that file. On the
same machine the lock decides. Other machines rely on a time stamp that each open run repeats in
MLflow once a minute: the run counts as alive until the stamp is ``LIMIT`` seconds old.
"""

from __future__ import annotations

import functools
import os
import socket
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from filelock import FileLock

from cliptex_common.files import home
from cliptex_common.locks import acquire_liveness_lock, is_locked, lock_path, locked

LIMIT = 600.0  # age in seconds at which a time stamp of another machine no longer counts
MACHINE_TAG, LOCK_TAG, TIME_TAG = "process.machine", "process.lock", "heartbeat.time"


def process_tags() -> dict[str, str]:
    """The tags by which others see that this process is alive."""
    lock = _process_lock(os.getpid())
    return {MACHINE_TAG: machine(), LOCK_TAG: str(lock.lock_file), TIME_TAG: f"{time.time():.0f}"}


@functools.cache
def _process_lock(pid: int) -> FileLock:
    """The lock of the process ``pid``, this one, which the cache keeps until it ends."""
    with locked(lock_path("processes", "")):
        return acquire_liveness_lock(home().absolute() / "processes")


def is_alive(run_tags: Mapping[str, str]) -> bool:
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
