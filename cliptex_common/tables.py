"""Arrays on disk, built once and mapped into memory; and tar files that are read at random by such
an index.

All processes of a machine share the pages of a table, and opening one costs the same whatever its
length."""

from __future__ import annotations

import functools
import io
import os
import tarfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np

from cliptex_common.errors import UserError
from cliptex_common.files import (
    atomic_write,
    content_key,
    home,
    lock_path,
    locked,
    mark_in_use,
    read_json_object,
    write_json,
)

ARRAYS = "arrays"  # key of the metadata: the arrays' names
Contents = tuple[Mapping[str, np.ndarray], dict[str, Any]]  # arrays and metadata


class Table:
    """Arrays by name with JSON ``metadata``, each mapped when it is first used; cheap to pickle
    when stored in a file."""

    def __init__(
        self,
        file: Path,
        metadata: Mapping[str, Any],
        arrays: Mapping[str, np.ndarray] | None = None,
    ) -> None:
        self.file, self.metadata = file, metadata
        self._arrays = dict(arrays or {})

    def __getitem__(self, name: str) -> np.ndarray:
        if name not in self._arrays:
            mapped = np.load(self.file.with_suffix(f".{name}.npy"), mmap_mode="r")
            self._arrays[name] = mapped.view(np.ndarray)  # quicker to index than a memmap
        return self._arrays[name]

    def __getstate__(self) -> dict[str, Any]:
        return {"file": self.file, "metadata": self.metadata, "_arrays": {}}


def cached_table(
    kind: str,
    subject: Any,
    build: Callable[[], Contents],
    on_wait: Callable[[], None] = lambda: None,
    *,
    keep: bool = True,
) -> Table:
    """The table of ``subject`` under ``$CLIPTEX_HOME/KIND``; built, if missing or damaged, by one
    process while others wait.

    Args:
        kind: folder and name of the lock.
        subject: everything that determines the table; JSON-able.
        build: returns arrays and metadata.
        on_wait: called if another process is building it.
        keep: otherwise nothing is written: a missing table is built in memory.
    """
    key = content_key(subject, 32)
    file = home() / kind / f"{key}.json"
    if keep:
        mark_in_use(file.parent)  # workers open it later
    if table := _load(file):
        return table
    if not keep:
        arrays, metadata = build()
        return Table(file, metadata, arrays)
    with locked(lock_path(kind, key), on_wait):
        if table := _load(file):
            return table
        arrays, metadata = build()
        for name, array in arrays.items():
            path = file.with_suffix(f".{name}.npy")
            with atomic_write(path) as temporary, temporary.open("wb") as output:
                np.save(output, array)
        write_json(file, {**metadata, ARRAYS: sorted(arrays)})
    return Table(file, metadata)


def _load(file: Path) -> Table | None:
    """The table in a file; None if it is missing, cut off or damaged."""
    table = Table(file, read_json_object(file))
    try:
        for name in table.metadata[ARRAYS]:
            table[name]  # maps it, which checks header and size
    except (KeyError, TypeError, ValueError, OSError, EOFError):
        return None
    return table


INDEX_VERSION = 4  # of the cached index


def read_member(path: Path, version: int, offset: int, size: int) -> bytes:
    """Bytes of a tar of the version that ``tar_identity`` gives. The file stays open; reads are
    safe in every thread and worker.

    Raises:
        OSError: the file cannot be read, or ends early.
    """
    file = _open_tar(path, version, os.getpid())
    data = os.pread(file.fileno(), int(size), int(offset))
    if len(data) != size:
        raise OSError(0, "it ends early", str(path))
    return data


@functools.lru_cache(maxsize=256)  # tars that a shuffled epoch reads at once
def _open_tar(path: Path, version: int, pid: int) -> io.FileIO:
    return io.FileIO(path)


def tar_identity(tar: Path) -> tuple[str, int, int]:
    """Resolved path, size in bytes and version (modification time in ns) of a tar."""
    stat = tar.stat()
    return str(tar.resolve()), stat.st_size, stat.st_mtime_ns


def index_tar(path: Path, suffixes: Sequence[str]) -> Table:
    """``list_members`` of a tar, cached under ``$CLIPTEX_HOME`` by its path, size and modification
    time."""
    subject = [*tar_identity(path), INDEX_VERSION, *suffixes]
    return cached_table("tar-index", subject, lambda: list_members(path, suffixes))


def list_members(path: Path, suffixes: Sequence[str]) -> Contents:
    """Where the members with these suffixes (lower case, without the first dot: ``txt``,
    ``seg.png``) are in a tar.

    ``keys``: (N,) bytes, in the order of the tar; ``spans``: (N, number of suffixes, 2) int64,
    offset and size of each member, size -1 where there is none.

    Raises:
        UserError: see ``walk_tar``.
    """
    samples = walk_tar(path)
    spans = np.full((len(samples), len(suffixes), 2), -1, np.int64)
    for row, members in enumerate(samples.values()):
        for column, suffix in enumerate(suffixes):
            spans[row, column] = members.get(suffix, (-1, -1))
    return {"keys": np.array([key.encode() for key in samples], np.bytes_), "spans": spans}, {}


def walk_tar(path: Path) -> dict[str, dict[str, tuple[int, int]]]:
    """Key → suffix (lower case) → (offset, size), in the order of the tar, which is in the
    webdataset convention: ``KEY.SUFFIX``, the key ends at the first dot of the file's name.

    Raises:
        UserError: the file is cut off, damaged or compressed, or holds a member twice.
    """
    samples: dict[str, dict[str, tuple[int, int]]] = {}
    with path.open("rb") as file:
        try:
            with tarfile.open(fileobj=file, mode="r:") as archive:
                for member in archive:
                    if not member.isfile():
                        continue
                    folder, _, base = member.name.rpartition("/")
                    key, _, suffix = base.partition(".")
                    key = f"{folder}/{key}" if folder.strip("./") else key
                    members = samples.setdefault(key, {})
                    if suffix.lower() in members:
                        raise UserError(
                            f"{path} holds {member.name} twice; keys must be unique in a shard"
                        )
                    members[suffix.lower()] = (member.offset_data, member.size)
                end = archive.offset
        except tarfile.TarError as error:
            raise UserError(
                f"shard {path} is not a readable, uncompressed tar file ({error}); fetch it again"
            ) from error
        # tarfile takes a damaged header, or a cut between two members, for the end
        if not _ends_in_zeros(file, end):
            raise UserError(f"shard {path} is cut off or damaged at byte {end}; fetch it again")
    return samples


def _ends_in_zeros(file: IO[bytes], start: int) -> bool:
    """Whether zeros follow from byte ``start`` on, and nothing else, as in a complete tar file."""
    file.seek(start)
    is_complete = False
    while block := file.read(1 << 20):
        if any(block):
            return False
        is_complete = True
    return is_complete
