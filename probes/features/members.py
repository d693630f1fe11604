"""Files that may be members of a tar: ``test/0.tar/s0000001.webp`` is read from within the tar.

A path is that of a plain file unless a folder in it ends in ``.tar``.
"""

from __future__ import annotations

import io
import os
from functools import lru_cache
from pathlib import Path

from cliptex_common import files
from cliptex_common.tar_index import index_tar, read_member, tar_identity

FileState = tuple[int, int, int]  # size, time of the last change in ns, inode
IMAGES = ("webp", "png", "jpg", "jpeg")
SUFFIXES = (*IMAGES, "cls", "txt", "npy", "json")  # of the members that are indexed


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
    """Name (``KEY.SUFFIX``) → (offset, size) of the members with one of ``SUFFIXES``, in order.

    Raises:
        UserError: see ``index_tar``.
    """
    return _members(tar, tar_identity(tar)[1:])


@lru_cache(maxsize=4096)
def _members(tar: Path, version: tuple[int, int | str]) -> dict[str, tuple[int, int]]:
    index = index_tar(tar, SUFFIXES)
    return {
        f"{key.decode()}.{suffix}": (int(offset), int(size))
        for key, positions in zip(index["keys"], index["spans"], strict=True)
        for suffix, (offset, size) in zip(SUFFIXES, positions, strict=True)
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
