"""Tar files in the webdataset convention, indexed once and then read at random: ``KEY.SUFFIX`` → bytes.

A key ends at the first dot of the file's name. An index (keys, offsets, sizes) is kept under ``$CLIPTEX_HOME`` by path, size and
time of its tar, so that a shard of ten thousand samples is walked once.
"""

from __future__ import annotations

import functools
import io
import os
import tarfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from backbones.errors import UserError
from backbones.files import content_key, home, replacing

VERSION = 3  # of what is kept


@dataclass(frozen=True)
class TarIndex:
    """Where the members of a tar lie.

    Attributes:
        path, mtime_ns: the tar, as it was indexed.
        keys: (N,) bytes, in the order of the tar.
        places: (N, number of suffixes, 2) int64, offset and size of each member; size -1 where there is none.
    """

    path: Path
    mtime_ns: int
    keys: np.ndarray
    places: np.ndarray

    def __len__(self) -> int:
        return len(self.keys)


def read_member(path: Path, mtime_ns: int, offset: int, size: int) -> bytes:
    """Bytes of a tar. The file stays open; reads that know no position are safe in every thread and worker.

    Raises:
        OSError: the file cannot be read, or ends early.
    """
    file = _opened(path, mtime_ns, os.getpid())  # held: another thread may have opened it too
    data = os.pread(file.fileno(), int(size), int(offset))
    if len(data) != size:
        raise OSError(0, "it ends early", str(path))
    return data


@functools.lru_cache(maxsize=256)  # of those that a shuffling epoch reads at once
def _opened(path: Path, mtime_ns: int, pid: int) -> io.FileIO:
    return io.FileIO(path)


def index_tar(path: Path, suffixes: Sequence[str], *, keep: bool = True) -> TarIndex:
    """The index of a tar, for members with these suffixes (lower case, without the first dot: ``txt``, ``seg.png``).

    Samples without any of them are in the index too, all their sizes -1. ``keep`` it for those who index the same tar again.

    Raises:
        UserError: the file is cut off, damaged, compressed, or holds a member twice.
    """
    stat = path.stat()
    kept = [str(path.resolve()), stat.st_size, stat.st_mtime_ns, VERSION, *suffixes]
    cached = home() / "tar-index" / f"{content_key(kept)}.npz"
    if cached.is_file():
        with np.load(cached, allow_pickle=False) as arrays:
            return TarIndex(path, stat.st_mtime_ns, arrays["keys"], arrays["places"])
    samples = _walk(path, stat.st_size)
    keys = np.array([key.encode() for key in samples], dtype=np.bytes_)
    places = np.full((len(samples), len(suffixes), 2), -1, np.int64)
    for row, parts in enumerate(samples.values()):
        for column, suffix in enumerate(suffixes):
            places[row, column] = parts.get(suffix, (-1, -1))
    if keep:
        with replacing(cached) as temporary, temporary.open("wb") as file:
            np.savez(file, keys=keys, places=places)
    return TarIndex(path, stat.st_mtime_ns, keys, places)


def _walk(path: Path, size: int) -> dict[str, dict[str, tuple[int, int]]]:
    """Key → suffix → (offset, size), in the order of the tar."""
    if not _has_end_mark(path, size):  # tarfile would take a shard cut between two members for a whole one
        raise UserError(f"shard {path} is cut off or no uncompressed tar file; fetch it again")
    samples: dict[str, dict[str, tuple[int, int]]] = {}
    try:
        with tarfile.open(path, "r:") as archive:
            for member in archive:
                if not member.isfile():
                    continue
                folder, _, name = member.name.rpartition("/")
                key, _, suffix = name.partition(".")
                parts = samples.setdefault(f"{folder}/{key}" if folder.strip("./") else key, {})
                if suffix.lower() in parts:
                    raise UserError(f"{path} holds {member.name} twice; keys must be unique in a shard")
                if member.offset_data + member.size > size:
                    raise UserError(f"shard {path} ends in the middle of {member.name}; fetch it again")
                parts[suffix.lower()] = (member.offset_data, member.size)
            end = archive.offset
        if not _only_zeros(path, end):  # tarfile takes a damaged header for the end, and so the rest for nothing
            raise UserError(f"shard {path} is damaged at byte {end}; fetch it again")
    except tarfile.TarError as error:
        raise UserError(f"shard {path} is not a readable, uncompressed tar file ({error}); fetch it again") from error
    return samples


def _has_end_mark(path: Path, size: int) -> bool:
    """Whether the file ends with a block of zeros, as every whole tar file does."""
    if size < tarfile.BLOCKSIZE or size % tarfile.BLOCKSIZE:
        return False
    with path.open("rb") as file:
        file.seek(-tarfile.BLOCKSIZE, os.SEEK_END)
        return not any(file.read())


def _only_zeros(path: Path, start: int) -> bool:
    """Whether nothing but zeros follows from byte ``start`` on."""
    with path.open("rb") as file:
        file.seek(start)
        while piece := file.read(1 << 20):
            if any(piece):
                return False
    return True
