"""The file of one shard's labels: records, an index of their keys, a summary, and a digest of it all.

    MAGIC | record … | index (24 bytes a record, sorted by key's hash) | summary (JSON) | lengths, sha256, MAGIC

A record is a JSON head (key; size and decoding parameters of each plane) and the planes' bytes. The file appears whole,
by renaming, or not at all; its digest tells damage, and each record's own checksum does so when it is read alone.
"""

from __future__ import annotations

import hashlib
import json
import os
import struct
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

import numpy as np

from backbones.cliptex import planes
from backbones.files import replacing

VERSION = 2  # 1 had normals with y down
MAGIC = b"CLIPTeXL"
_HEAD = struct.Struct("<I")
_TAIL = struct.Struct("<QI32s8s")  # length of index and of summary, sha256 of all before this tail, magic
_INDEX = np.dtype([("key", "<u8"), ("offset", "<u8"), ("size", "<u4"), ("crc", "<u4")])


class DamagedShard(Exception):
    """A shard file is cut off or its bytes have changed; the message says which."""


class ShardWriter:
    """One shard being written. A context: leaving it normally puts the file in its place, an error leaves nothing.

    Obtained from ``LabelWriter.shard``.
    """

    def __init__(self, path: Path, name: str, identity: str) -> None:
        self._path, self._name, self._identity = path, name, identity
        self._index: list[tuple[int, int, int, int]] = []
        self._keys: set[int] = set()
        self._failed: list[list[str]] = []
        self._bytes = dict.fromkeys(planes.ENCODE, 0)
        self._pixels = 0
        self._errors: dict[str, dict[str, float]] = {}

    def __enter__(self) -> ShardWriter:
        for left in self._path.parent.glob(f".{self._path.name}.*.tmp"):  # of a labelling that was killed
            left.unlink(missing_ok=True)
        self._replacing = replacing(self._path)
        self._file: BinaryIO = self._replacing.__enter__().open("wb")
        self._digest = hashlib.sha256()
        self._write(MAGIC)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is None:
                self._finish()
        except BaseException as own:
            self._file.close()
            self._replacing.__exit__(type(own), own, own.__traceback__)
            raise
        self._file.close()
        self._replacing.__exit__(kind, error, trace)

    def add(self, key: str, coded: Mapping[str, planes.Plane], pixels: int = 0) -> None:
        """Append one pair's labels, coded by ``encode``; ``pixels`` of its image (for figures).

        Raises:
            ValueError: the key is there already.
        """
        hashed = hash_key(key)
        if hashed in self._keys:
            raise ValueError(f"labels of {key!r} are in shard {self._name} already")
        self._keys.add(hashed)
        head: dict[str, Any] = {"key": key}
        for name, plane in coded.items():
            head[name] = [len(plane.data), plane.meta]
            self._bytes[name] += len(plane.data)
            if plane.error:
                self._add_errors(name, plane.error)
        text = json.dumps(head, separators=(",", ":"), ensure_ascii=False).encode()
        record = _HEAD.pack(len(text)) + text + b"".join(plane.data for plane in coded.values())
        self._index.append((hashed, self._offset, len(record), zlib.crc32(record)))
        self._pixels += pixels
        self._write(record)

    def fail(self, key: str, reason: str) -> None:
        """Name a pair that has no labels, and why: count in = count out + failures."""
        self._failed.append([key, reason])

    def _add_errors(self, name: str, error: Mapping[str, float]) -> None:
        total = self._errors.setdefault(name, dict.fromkeys(error, 0.0))
        for figure, value in error.items():
            total[figure] = max(total[figure], value) if figure == "max" else total[figure] + value

    @property
    def _offset(self) -> int:
        return self._file.tell()

    def _write(self, data: bytes) -> None:
        self._digest.update(data)
        self._file.write(data)

    def _finish(self) -> None:
        index = np.sort(np.array(self._index, _INDEX), order="key").tobytes()
        summary = {
            "version": VERSION,
            "name": self._name,
            "identity": self._identity,
            "pairs_in": len(self._index) + len(self._failed),
            "pairs_out": len(self._index),
            "failed": self._failed,
            "plane_bytes": self._bytes,
            "pixels": self._pixels,
            "errors": self._errors,
        }
        text = json.dumps(summary, ensure_ascii=False).encode()
        self._write(index)
        self._write(text)
        self._file.write(_TAIL.pack(len(index), len(text), self._digest.digest(), MAGIC))


@dataclass(frozen=True)
class ShardReader:
    """One shard's file, open for reading: its index in memory, its records on disk."""

    path: Path
    summary: dict[str, Any]
    index: np.ndarray
    sha256: str

    def __len__(self) -> int:
        return len(self.index)

    def get(self, key: str) -> dict[str, np.ndarray]:
        """Labels of one pair, as ``LabelStore.get`` gives them. Raises ``KeyError``, ``DamagedShard``."""
        hashed = hash_key(key)
        place = int(np.searchsorted(self.index["key"], np.uint64(hashed)))
        if place == len(self.index) or int(self.index["key"][place]) != hashed:
            raise KeyError(key)
        with self.path.open("rb") as file:
            found, maps = self._read(file, place)
        if found != key:
            raise KeyError(key)
        return maps

    def keys(self) -> Iterator[str]:
        """Keys in the order they were written."""
        with self.path.open("rb") as file:
            for offset in np.sort(self.index["offset"]):
                file.seek(int(offset))
                (length,) = _HEAD.unpack(file.read(_HEAD.size))
                yield json.loads(file.read(length))["key"]

    def __iter__(self) -> Iterator[tuple[str, dict[str, np.ndarray]]]:
        """(key, labels) in the order they were written, read one by one."""
        with self.path.open("rb") as file:
            for place in np.argsort(self.index["offset"]):
                yield self._read(file, int(place))

    def _read(self, file: BinaryIO, place: int) -> tuple[str, dict[str, np.ndarray]]:
        entry = self.index[place]
        file.seek(int(entry["offset"]))
        record = file.read(int(entry["size"]))
        if len(record) != entry["size"] or zlib.crc32(record) != entry["crc"]:
            raise DamagedShard(f"{self.path} has changed on disk")
        (length,) = _HEAD.unpack_from(record)
        at = _HEAD.size + length
        head = json.loads(record[_HEAD.size : at])
        maps = {}
        for name in planes.DECODE:
            if name in head:
                size, meta = head[name]
                maps[name] = planes.DECODE[name](record[at : at + size], meta)
                at += size
        return head["key"], maps


def encode(maps: Mapping[str, np.ndarray]) -> dict[str, planes.Plane]:
    """Code an image's labels (those there, in a fixed order); see ``LabelStore.get`` for what they are.

    Pure and the costliest part of writing: call it from threads, its codecs do not hold the interpreter's lock.
    """
    return {name: code(maps[name]) for name, code in planes.ENCODE.items() if name in maps}


def open_shard(path: Path, *, whole: bool = True) -> ShardReader:
    """Open a shard's file and check it.

    Args:
        whole: check the digest of all bytes (reads the file once); else only that it is not cut off.

    Raises:
        DamagedShard: it is absent, cut off, or not what was written.
    """
    try:
        with path.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            if size < len(MAGIC) + _TAIL.size:
                raise DamagedShard(f"{path} is cut off")
            file.seek(size - _TAIL.size)
            index_size, summary_size, digest, magic = _TAIL.unpack(file.read(_TAIL.size))
            start = size - _TAIL.size - summary_size - index_size
            if magic != MAGIC or start < len(MAGIC) or index_size % _INDEX.itemsize:
                raise DamagedShard(f"{path} is cut off")
            if whole and _sha256(file, size - _TAIL.size) != digest:
                raise DamagedShard(f"{path} has changed on disk")
            file.seek(start)
            index = np.frombuffer(file.read(index_size), _INDEX)
            summary = json.loads(file.read(summary_size))
    except FileNotFoundError:
        raise DamagedShard(f"{path} is missing") from None
    except OSError as error:
        raise DamagedShard(f"{path} cannot be read ({error.strerror})") from error
    except ValueError:
        raise DamagedShard(f"{path} has changed on disk") from None
    return ShardReader(path, summary, index, digest.hex())


def hash_key(key: str) -> int:
    """64 bits of a key, the same everywhere."""
    return int.from_bytes(hashlib.blake2b(key.encode(), digest_size=8).digest(), "little")


def _sha256(file: BinaryIO, size: int) -> bytes:
    """Digest of the first ``size`` bytes, read in pieces."""
    digest = hashlib.sha256()
    file.seek(0)
    while size > 0:
        piece = file.read(min(size, 1 << 20))
        if not piece:
            break
        digest.update(piece)
        size -= len(piece)
    return digest.digest()
