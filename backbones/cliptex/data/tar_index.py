"""Tar files in the webdataset convention, indexed once and then read at random: ``KEY.SUFFIX`` →
bytes.

A key ends at the first dot of the file's name. An index (keys, offsets, sizes) is kept under
``$CLIPTEX_HOME`` by path, size and time of its tar (or URL, size and ETag), so that a shard of ten
thousand samples is walked once.
"""

from __future__ import annotations

import functools
import io
import os
import tarfile
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO
from zipfile import BadZipFile

import numpy as np

from backbones.cliptex.data.remote import RemoteFile
from common.errors import UserError
from common.files import atomic_write, content_key, home

VERSION = 3  # of what is kept
LONGEST = 1024  # bytes of a member's name


@dataclass(frozen=True)
class TarIndex:
    """Where the members of a tar lie.

    Attributes:
        keys: (N,) bytes, in the order of the tar.
        places: (N, number of suffixes, 2) int64, offset and size of each member; size -1 where
            there is none.
    """

    keys: np.ndarray
    places: np.ndarray

    def __len__(self) -> int:
        return len(self.keys)


def read_member(path: Path, version: int | str, offset: int, size: int) -> bytes:
    """Bytes of a tar of this machine, of the version that ``tar_identity`` gives. The file stays
    open; reads that know no position are safe in every thread and worker.

    Raises:
        OSError: the file cannot be read, or ends early.
    """
    file = _opened(path, version, os.getpid())  # held: another thread may have opened it too
    data = os.pread(file.fileno(), int(size), int(offset))
    if len(data) != size:
        raise OSError(0, "it ends early", str(path))
    return data


@functools.lru_cache(maxsize=256)  # of those that a shuffling epoch reads at once
def _opened(path: Path, version: int | str, pid: int) -> io.FileIO:
    return io.FileIO(path)


def tar_identity(tar: Path | RemoteFile) -> tuple[str, int, int | str]:
    """Where a tar is, its size in bytes, and its version (time of the last change in ns, or what
    its server says)."""
    if isinstance(tar, RemoteFile):
        return tar.url, tar.size, tar.version
    stat = tar.stat()
    return str(tar.resolve()), stat.st_size, stat.st_mtime_ns


def index_tar(path: Path | RemoteFile, suffixes: Sequence[str], *, keep: bool = True) -> TarIndex:
    """The index of a tar, for members with these suffixes (lower case, without the first dot:
    ``txt``, ``seg.png``).

    Samples without any of them are in the index too, all their sizes -1. ``keep`` it for those who
    index the same tar again.

    Raises:
        UserError: the file is cut off, damaged, compressed, holds a member twice, or its server
            does not give it.
    """
    identity = tar_identity(path)
    cached = home() / "tar-index" / f"{content_key([*identity, VERSION, *suffixes])}.npz"
    with (
        suppress(OSError, ValueError, KeyError, EOFError, BadZipFile),
        np.load(cached, allow_pickle=False) as arrays,
    ):
        return TarIndex(
            arrays["keys"], arrays["places"]
        )  # unless there is none, or one that is cut
    with path.open("rb") as file:
        samples = _walk(file, str(path), identity[1])
    keys = np.array(
        [key.encode() for key in samples], dtype=np.bytes_
    )  # a row each, as long as the longest
    places = np.full((len(samples), len(suffixes), 2), -1, np.int64)
    for row, parts in enumerate(samples.values()):
        for column, suffix in enumerate(suffixes):
            places[row, column] = parts.get(suffix, (-1, -1))
    if keep:
        with atomic_write(cached) as temporary, temporary.open("wb") as file:
            np.savez(file, keys=keys, places=places)
    return TarIndex(keys, places)


def _walk(file: IO[bytes], name: str, size: int) -> dict[str, dict[str, tuple[int, int]]]:
    """Key → suffix → (offset, size), in the order of the tar."""
    if not _has_end_mark(
        file, size
    ):  # tarfile would take a shard cut between two members for a whole one
        raise UserError(f"shard {name} is cut off or no uncompressed tar file; fetch it again")
    samples: dict[str, dict[str, tuple[int, int]]] = {}
    file.seek(0)
    try:
        with tarfile.open(fileobj=file, mode="r:") as archive:
            for member in archive:
                if not member.isfile():
                    continue
                if (
                    len(member.name.encode()) > LONGEST
                ):  # UnicodeEncodeError, which is a ValueError, for one that is not UTF-8
                    raise UserError(
                        f"shard {name} has a member whose name is longer than {LONGEST} bytes;"
                        " write it anew"
                    )
                folder, _, base = member.name.rpartition("/")
                key, _, suffix = base.partition(".")
                parts = samples.setdefault(f"{folder}/{key}" if folder.strip("./") else key, {})
                if suffix.lower() in parts:
                    raise UserError(
                        f"{name} holds {member.name} twice; keys must be unique in a shard"
                    )
                if member.offset_data + member.size > size:
                    raise UserError(
                        f"shard {name} ends in the middle of {member.name}; fetch it again"
                    )
                parts[suffix.lower()] = (member.offset_data, member.size)
            end = archive.offset
        if not _only_zeros(
            file, end
        ):  # tarfile takes a damaged header for the end, and so the rest for nothing
            raise UserError(f"shard {name} is damaged at byte {end}; fetch it again")
    except UserError:
        raise
    except (
        tarfile.TarError,
        ValueError,
        OverflowError,
        MemoryError,
    ) as error:  # of headers that make no sense
        raise UserError(
            f"shard {name} is not a readable, uncompressed tar file ({error}); fetch it again"
        ) from error
    return samples


def _has_end_mark(file: IO[bytes], size: int) -> bool:
    """Whether the file ends with a block of zeros, as every whole tar file does."""
    if size < tarfile.BLOCKSIZE or size % tarfile.BLOCKSIZE:
        return False
    file.seek(size - tarfile.BLOCKSIZE)
    return not any(file.read(tarfile.BLOCKSIZE))


def _only_zeros(file: IO[bytes], start: int) -> bool:
    """Whether nothing but zeros follows from byte ``start`` on."""
    file.seek(start)
    while piece := file.read(1 << 20):
        if any(piece):
            return False
    return True
