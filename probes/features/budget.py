"""How much disk the feature cache may take, and what goes when a new store needs room: the least
recently used.

The budget is ``$CLIPTEX_CACHE_GB``, or the lesser of 20 GB and half of what is free or used by the
cache already. A store that is being made counts with its estimated size, so that two processes do
not promise the same room twice.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from common.errors import UserError
from common.files import read_json_object, write_json

VARIABLE = "CLIPTEX_CACHE_GB"
DEFAULT_GB = 20.0
GB = 10**9
reserved = 0  # bytes for which this process has made room


class NoRoom(UserError):
    """The cache cannot hold it; whoever need not keep it can go on without."""


def budget(folder: Path) -> int:
    """Bytes that all stores under ``folder`` may take together.

    Raises:
        UserError: the environment variable is no number of gigabytes.
    """
    if given := os.environ.get(VARIABLE):
        try:
            gigabytes = float(given)
        except ValueError:
            gigabytes = -1.0
        if not 0 <= gigabytes < float("inf"):
            raise UserError(
                f"{VARIABLE}={given!r} is not a number of gigabytes; set one such as 20"
            )
        return int(gigabytes * GB)
    return int(min(DEFAULT_GB * GB, (free(folder) + sum(map(size_of, stores(folder)))) / 2))


def reserve(
    folder: Path, store: Path, more: int, about: str, remove: Callable[[Path], bool]
) -> None:
    """Make room for ``more`` bytes in ``store`` (one of the stores under ``folder``) by removing
    others, least recently used first, and remember the promise.

    Args:
        remove: removes a store, unless it is in use; whether it is gone.

    Raises:
        NoRoom: it is more than the budget or the disk can hold, or what is in use leaves too
            little.
    """
    allowed, own = budget(folder), _real_size(store)
    advice = (
        f"raise {VARIABLE}, keep half as much with cache=fp16, or encode each time with cache=none"
    )
    if own + more > allowed:
        raise NoRoom(
            f"features of {about} would take {gigabytes(own + more)}, and the cache may hold "
            f"{gigabytes(allowed)}; {advice}"
        )
    others = sorted((one for one in stores(folder) if one != store), key=last_used)
    taken = sum(map(size_of, others))
    for one in others:
        if taken + own + more <= allowed:
            break
        size = size_of(one)
        taken -= size if remove(one) else 0
    if taken + own + more > allowed:
        raise NoRoom(
            f"features of {about} would take {gigabytes(own + more)}; {gigabytes(taken)} of the"
            f" cache's {gigabytes(allowed)} are in use by this task or other processes; wait for"
            f" those, or {advice}"
        )
    if more > free(folder):
        raise NoRoom(
            f"features of {about} would take {gigabytes(more)} more, and {gigabytes(free(folder))}"
            f" are free on the disk of {folder}; free some space, set CLIPTEX_HOME to a larger"
            f" disk, or {advice}"
        )
    write_json(store / "making.json", {"bytes": own + more})
    global reserved
    reserved += more


def release(store: Path) -> None:
    """The store is finished: from now on its real size counts."""
    (store / "making.json").unlink(missing_ok=True)


def stores(folder: Path) -> list[Path]:
    """All stores, finished or not."""
    return sorted(one for one in folder.iterdir() if one.is_dir()) if folder.is_dir() else []


def size_of(store: Path) -> int:
    """Bytes of a store; of one that is being made, what it will have."""
    return max(_real_size(store), read_json_object(store / "making.json").get("bytes", 0))


def _real_size(store: Path) -> int:
    real = 0
    with suppress(OSError):  # another process may be removing it
        for file in store.iterdir():
            with suppress(OSError):
                real += file.stat().st_size
    return real


def touch(store: Path) -> None:
    """Remember that the store was used now."""
    with suppress(OSError):
        (store / "used").touch()


def last_used(store: Path) -> float:
    """When the store was used last, seconds since the epoch; 0 when that is not known."""
    for name in ("used", "manifest.json", "."):
        with suppress(OSError):
            return (store / name).stat().st_mtime
    return 0.0


def gigabytes(size: float) -> str:
    """A size for people."""
    return f"{size / GB:.1f} GB" if size >= GB / 10 else f"{size / 10**6:.1f} MB"


def free(folder: Path) -> int:
    """Bytes on the disk that ``folder`` is, or will be, on."""
    return shutil.disk_usage(next(one for one in (folder, *folder.parents) if one.exists())).free
