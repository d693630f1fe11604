"""The size limit of the feature cache.

The limit is ``$CLIPTEX_CACHE_GB``. The default is 20 GB, but at most half of the space that is free
or used by the cache. Before a store is written, stores that no process uses are deleted, least
recently used first.
"""

from __future__ import annotations

import math
import os
import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from cliptex_common.errors import UserError

VARIABLE = "CLIPTEX_CACHE_GB"
DEFAULT_GB = 20.0
GB = 10**9


class CacheFull(UserError):
    """The features do not fit into the cache; a probe that needs no cache encodes without it."""


def chosen_limit() -> int | None:
    """Bytes of ``$CLIPTEX_CACHE_GB``; None where it is not set.

    Raises:
        UserError: it is not a number of gigabytes.
    """
    text = os.environ.get(VARIABLE)
    if not text:
        return None
    try:
        limit = float(text)
    except ValueError:
        limit = -1.0
    if not 0 <= limit < math.inf:
        raise UserError(f"{VARIABLE}={text!r} is not a number of gigabytes; set one such as 20")
    return int(limit * GB)


def size_limit(folder: Path) -> int:
    """Bytes that all stores in ``folder`` may take together. Raises as ``chosen_limit``."""
    if (limit := chosen_limit()) is not None:
        return limit
    used = sum(map(size_of, stores(folder)))
    return int(min(DEFAULT_GB * GB, (free_bytes(folder) + used) / 2))


def make_room(folder: Path, size: int, about: str, delete: Callable[[Path], bool]) -> None:
    """Delete stores in ``folder``, least recently used first, until ``size`` more bytes fit.

    Args:
        about: the features that need the space, for the message.
        delete: deletes a store unless it is in use; returns whether it did.

    Raises:
        CacheFull: the stores in use leave too little, or the disk is full.
    """
    limit, sizes = size_limit(folder), {store: size_of(store) for store in stores(folder)}
    used = sum(sizes.values())
    for store in sorted(sizes, key=last_used):
        if used + size <= limit:
            break
        if delete(store):
            used -= sizes[store]
    free = free_bytes(folder)
    if used + size > limit or size > free:
        raise CacheFull(
            f"features of {about} take {gigabytes(size)}, but {gigabytes(used)} of the cache's"
            f" {gigabytes(limit)} are in use and {gigabytes(free)} are free on its disk; raise"
            f" {VARIABLE}, set CLIPTEX_HOME to a larger disk, or encode each time with cache=none"
        )


def stores(folder: Path) -> list[Path]:
    """The folders of all stores, complete or not."""
    return sorted(path for path in folder.glob("*") if path.is_dir())


def size_of(store: Path) -> int:
    """Bytes of a store's files."""
    size = 0
    with suppress(OSError):  # another process may be deleting it
        size = sum(file.stat().st_size for file in store.iterdir())
    return size


def touch(store: Path) -> None:
    """Record that the store is used now, by the time of its folder."""
    with suppress(OSError):
        os.utime(store)


def last_used(store: Path) -> float:
    """When the store was used last, in seconds since the epoch; 0 if another process deletes it."""
    with suppress(OSError):
        return store.stat().st_mtime
    return 0.0


def gigabytes(size: float) -> str:
    """A size in GB, or in MB below 100 MB."""
    return f"{size / GB:.1f} GB" if size >= GB / 10 else f"{size / 10**6:.1f} MB"


def free_bytes(folder: Path) -> int:
    """Bytes free on the disk of ``folder``, which need not exist yet."""
    existing = next(path for path in (folder, *folder.parents) if path.exists())
    return shutil.disk_usage(existing).free
