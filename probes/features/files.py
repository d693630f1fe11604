"""Files that features are made of, their sha256, and the room that features may take. Importing
this imports no torch.

A file may be a member of a tar: ``test/0.tar/s0000001.webp`` is read from within the tar. A path is
that of a plain file unless a folder in it ends in ``.tar``.
"""

from __future__ import annotations

import hashlib
import io
import json
import math
import os
import shutil
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import lru_cache
from pathlib import Path

from cliptex_common import files
from cliptex_common.errors import UserError
from cliptex_common.files import (
    content_key,
    home,
)
from cliptex_common.tables import index_tar, read_member, tar_identity

LIMIT_VARIABLE = "CLIPTEX_CACHE_GB"
DEFAULT_GB = 20.0
GB = 10**9


class CacheFull(UserError):
    """The features do not fit into the cache; a probe that needs no cache encodes without it."""


def chosen_limit() -> int | None:
    """Bytes of ``$CLIPTEX_CACHE_GB``; None where it is not set.

    Raises:
        UserError: it is not a number of gigabytes.
    """
    text = os.environ.get(LIMIT_VARIABLE)
    if not text:
        return None
    try:
        limit = float(text)
    except ValueError:
        limit = -1.0
    if not 0 <= limit < math.inf:
        raise UserError(
            f"{LIMIT_VARIABLE}={text!r} is not a number of gigabytes; set one such as 20"
        )
    return int(limit * GB)


def size_limit(folder: Path) -> int:
    """Bytes that all stores in ``folder`` may take together: ``chosen_limit``, or ``DEFAULT_GB``,
    but at most half of the space that is free or used by them. Raises as ``chosen_limit``."""
    if (limit := chosen_limit()) is not None:
        return limit
    used = sum(map(size_of, stores(folder)))
    return int(min(DEFAULT_GB * GB, (free_bytes(folder) + used) / 2))


def make_room(folder: Path, size: int, about: str, delete: Callable[[Path], bool]) -> None:
    """Before a store is written, delete others in ``folder`` that no process uses, least recently
    used first, until its ``size`` bytes fit.

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
            f" {LIMIT_VARIABLE}, set CLIPTEX_HOME to a larger disk, or encode each time with"
            " cache=none"
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


FileState = tuple[int, int, int]  # size, time of the last change in ns, inode


IMAGE_MEMBERS = ("webp", "png", "jpg", "jpeg")


MEMBER_SUFFIXES = (*IMAGE_MEMBERS, "cls", "txt", "npy", "json")  # of the members that are indexed


def read_bytes(path: Path | str) -> bytes:
    """The content of a file or a member. Raises ``OSError``; ``UserError`` for a damaged tar."""
    if (member := _locate(str(path))) is None:
        return files.read_bytes(path)
    tar, offset, size = member
    return read_member(tar, tar_identity(tar)[2], offset, size)


def image_source(path: Path | str) -> Path | io.BytesIO:
    """What Pillow opens: the path of a file, or the content of a member."""
    return io.BytesIO(read_bytes(path)) if ".tar/" in str(path) else Path(path)


def state_of(path: Path | str) -> FileState:
    """What changes with a file's content; a member has its own size, its tar's time and inode.

    Raises:
        OSError: there is no such file or member.
    """
    if (member := _locate(str(path))) is None:
        status = os.stat(path)  # noqa: PTH116 – a Path for each of a million files takes minutes
        return status.st_size, status.st_mtime_ns, status.st_ino
    tar, _, size = member
    return (size, *state_of(tar)[1:])


def members(tar: Path) -> dict[str, tuple[int, int]]:
    """Name (``KEY.SUFFIX``) → (offset, size) of the members with one of ``MEMBER_SUFFIXES``, in
    order.

    Raises:
        UserError: see ``index_tar``.
    """
    return _members(tar, tar_identity(tar)[1:])


@lru_cache(maxsize=4096)
def _members(tar: Path, version: tuple[int, int | str]) -> dict[str, tuple[int, int]]:
    index = index_tar(tar, MEMBER_SUFFIXES)
    return {
        f"{key.decode()}.{suffix}": (int(offset), int(size))
        for key, positions in zip(index["keys"], index["spans"], strict=True)
        for suffix, (offset, size) in zip(MEMBER_SUFFIXES, positions, strict=True)
        if size >= 0
    }


def _locate(path: str) -> tuple[Path, int, int] | None:
    """(tar, offset, size) of a member, None for a plain file. Raises ``FileNotFoundError``."""
    head, separator, name = path.partition(".tar/")
    if not separator:
        return None
    tar = Path(f"{head}.tar")
    try:
        return (tar, *members(tar)[name])
    except KeyError:
        raise FileNotFoundError(2, "no such member", path) from None


HashedFile = tuple[Path, FileState, str]  # with its sha256


def content_hashes(paths: Sequence[Path]) -> list[str]:
    """The sha256 of each file, so that whatever is cached about an image follows its content, not
    its name. A file is read only if its size, time or inode have changed since its hash was stored
    (``record_of``); a dataset's check reads every file anyway and stores its hashes.

    Raises:
        UserError: a file cannot be read.
    """
    stored = {folder: stored_hashes(folder) for folder in {path.parent for path in paths}}
    try:
        states = [state_of(path) for path in paths]
        changed = [
            (path, state)
            for path, state in zip(paths, states, strict=True)
            if stored[path.parent].get(path.name, ("",))[0] != state
        ]
        with ThreadPoolExecutor(4) as pool:  # reading and hashing release the GIL
            hashes = pool.map(read_sha256, [path for path, _ in changed])
            hashed = [(*file, sha256) for file, sha256 in zip(changed, hashes, strict=True)]
    except OSError as error:
        raise UserError(f"cannot read {error.filename}: {error.strerror}") from error
    store_hashes(hashed)
    for path, state, sha256 in hashed:
        stored[path.parent][path.name] = state, sha256
    return [stored[path.parent][path.name][1] for path in paths]


def content_hash(path: str | Path) -> str:
    """The sha256 of a file, which this process reads once unless it changes; it is remembered in
    memory alone, not stored as by ``content_hashes``. Raises ``OSError``."""
    return _sha256_of_state(Path(path), state_of(path))


def read_and_hash(path: Path) -> tuple[bytes, HashedFile]:
    """A file's bytes, and what ``store_hashes`` stores of it. Raises ``OSError``."""
    state = state_of(path)
    data = read_bytes(path)
    return data, (path, state, hashlib.sha256(data).hexdigest())


def read_sha256(path: Path) -> str:
    """The sha256 of a file, read now. Raises ``OSError``."""
    return hashlib.sha256(read_bytes(path)).hexdigest()


@lru_cache(maxsize=2**17)
def _sha256_of_state(path: Path, state: FileState) -> str:
    return read_sha256(path)


def record_of(folder: Path) -> Path:
    """Where the hashes of a folder's files are stored, each with its file's size, time and inode:
    a file to which processes append lines."""
    return home() / "content_hashes" / f"{content_key(folder.absolute(), 32)}.jsonl"


def stored_hashes(folder: Path) -> dict[str, tuple[FileState, str]]:
    """Name → (state, sha256) of the files of a folder; the last line of a name counts."""
    stored = {}
    with suppress(OSError), record_of(folder).open(encoding="utf-8") as lines:
        for line in lines:
            with suppress(ValueError):  # cut short by a process that was killed
                name, size, time, inode, sha256 = json.loads(line)
                stored[name] = ((size, time, inode), sha256)
    return stored


def store_hashes(entries: Iterable[HashedFile]) -> None:
    """Append entries for other processes."""
    folders: dict[Path, list[str]] = defaultdict(list)
    for path, state, sha256 in entries:
        folders[path.parent].append(json.dumps([path.name, *state, sha256]) + "\n")
    with suppress(OSError):  # without the file, hashes are computed again
        for folder, lines in folders.items():
            record_of(folder).parent.mkdir(parents=True, exist_ok=True)
            with record_of(folder).open("a", encoding="utf-8") as file:
                # the empty line ends one that a killed process has cut short
                file.write("".join(["\n", *lines]))
