"""The feature store, its size limit, and the hashes that its keys are made of.

The size limit of the feature cache.

The limit is ``$CLIPTEX_CACHE_GB``. The default is 20 GB, but at most half of the space that is free
or used by the cache. Before a store is written, stores that no process uses are deleted, least
recently used first.

Files that may be members of a tar: ``test/0.tar/s0000001.webp`` is read from within the tar.

A path is that of a plain file unless a folder in it ends in ``.tar``.

sha256 of files, so that whatever is cached about an image follows its content, not its name:
``content_hashes`` of many, whose hashes are stored on disk, ``content_hash`` of one.

A hash is stored with the file's size, time and inode, one file of ``$CLIPTEX_HOME/content_hashes``
for each folder, to which processes append lines. A dataset's check reads every file anyway and
stores its hashes, so that a large dataset is read once.

Tensors that are slow to compute, cached by content: feature maps, crops of ground truth,
embeddings.

A *store* is a folder ``$CLIPTEX_HOME/features/KEY`` of memory-mapped safetensors files. KEY is a
hash of everything that the tensors follow from (see ``CacheKey``). Each shard is written beside its
path and renamed, then its entry, with size and sha256. A store is complete when every shard has its
entry, so an interrupted build resumes after its last complete shard. A damaged store is reported
and rebuilt. One process builds a store while others wait, and each open store holds a lock that
keeps it from being deleted."""

from __future__ import annotations

import hashlib
import io
import json
import logging
import math
import os
import shutil
from bisect import bisect_right
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from cliptex_common import files
from cliptex_common.errors import UserError
from cliptex_common.files import (
    acquire_liveness_lock,
    atomic_write,
    content_key,
    home,
    is_in_use,
    locked,
    read_json_object,
    release_liveness_lock,
    sha256_file,
    write_json,
)
from cliptex_common.tables import index_tar, read_member, tar_identity

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


HashedFile = tuple[Path, FileState, str]  # with its sha256


def content_hashes(paths: Sequence[Path]) -> list[str]:
    """The sha256 of each file. A file is read only if its size, time or inode have changed.

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
    """The sha256 of a file, which this process reads once unless it changes. Raises ``OSError``."""
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
    """Where the hashes of a folder's files are stored."""
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


VERSION = 4  # raised whenever the same key would give other bytes
SHARD_BYTES = 64 * 2**20
DTYPES = {
    "fp32": torch.float32,
    "fp16": torch.float16,
    "bf16": torch.bfloat16,
    "uint8": torch.uint8,
    "uint16": torch.uint16,
}
ENTRY_KEYS = {"file", "bytes", "sha256", "first"}  # of a complete shard; ``first``: its first item
Metadata = Mapping[str, Any]  # of an item, JSON-able
# Computes items: given the items of each shard to write, it yields (item, tensors, metadata), all
# items of one shard before any of the next, in any order within.
Builder = Callable[[Sequence[Sequence[int]]], Iterable[tuple[int, Sequence[Tensor], Metadata]]]
log = logging.getLogger("cliptex.features")


@dataclass(frozen=True)
class CacheKey:
    """What a store holds and what it follows from.

    Attributes:
        kind: ``dense maps``, ``ground truth`` or ``embeddings``.
        about: one line for people, e.g. ``clip on mini-seg, train``.
        identity: everything that the tensors follow from, JSON-able: weights, images, crops,
            layers, precision …
        dtypes: of the tensors of each item, keys of ``DTYPES``.
        item_bytes: estimated bytes of each item's tensors.
    """

    kind: str
    about: str
    identity: Mapping[str, Any]
    dtypes: tuple[str, ...]
    item_bytes: Sequence[int] = field(repr=False)

    @property
    def digest(self) -> str:
        """The name of the store's folder."""
        content = [VERSION, self.kind, self.identity, self.dtypes, len(self.item_bytes)]
        return content_key(content, 32)

    @property
    def folder(self) -> Path:
        return root() / self.digest

    @cached_property
    def shards(self) -> list[range]:
        """The items of each shard; about ``SHARD_BYTES`` each."""
        shards, start, size = [], 0, 0
        for item, more in enumerate(self.item_bytes):
            if item > start and size + more > SHARD_BYTES:
                shards.append(range(start, item))
                start, size = item, 0
            size += more
        return [*shards, range(start, len(self.item_bytes))]

    def entry(self, number: int) -> dict[str, Any]:
        """What is recorded of a complete shard; empty if it is not complete."""
        entry = read_json_object((self.folder / shard_name(number)).with_suffix(".json"))
        is_intact = entry.keys() >= ENTRY_KEYS and entry["first"] == self.shards[number].start
        return entry if is_intact else {}


def root() -> Path:
    """The folder of all stores."""
    return home() / "features"


class FeatureStore:
    """A complete store, open for reading; no other process can delete it while it is open.

    Attributes:
        folder: where it is.
        notes: what was damaged and rebuilt, one line each.
        built_bytes: of what was missing, about.
    """

    def __init__(
        self, key: CacheKey, lock: FileLock, notes: Sequence[str], built_bytes: int
    ) -> None:
        self.folder, self.notes, self._lock = key.folder, notes, lock
        self.built_bytes = built_bytes
        self._tensors, self._items = len(key.dtypes), len(key.item_bytes)
        self._starts = [shard.start for shard in key.shards]
        self._loaded: dict[int, tuple[list[Sequence[Tensor]], list[dict[str, Any]]]] = {}

    def __len__(self) -> int:
        return self._items

    def __getitem__(self, item: int) -> list[Tensor]:
        """The tensors of one item, memory-mapped; writing to them changes no file."""
        shard, index = self._find(item)
        return [tensors[index] for tensors in self._load(shard)[0]]

    def metadata(self, item: int) -> dict[str, Any]:
        """The metadata of an item."""
        shard, index = self._find(item)
        return self._load(shard)[1][index]

    def stacked(self) -> Tensor:
        """The first tensor of every item, all of one shape: mapped if there is a single shard."""
        tensors: Any = [self._load(shard)[0][0] for shard in range(len(self._starts))]
        return tensors[0] if len(tensors) == 1 else torch.cat(tensors)

    def close(self) -> None:
        """Release the files, so that other processes may delete them."""
        self._loaded.clear()
        release_liveness_lock(self._lock)

    def _find(self, item: int) -> tuple[int, int]:
        """(shard, index in it) of an item."""
        shard = bisect_right(self._starts, item) - 1
        return shard, item - self._starts[shard]

    def _load(self, shard: int) -> tuple[list[Sequence[Tensor]], list[dict[str, Any]]]:
        """A shard's tensors – the first of each item, then the second … – and the items'
        metadata."""
        if shard not in self._loaded:
            with safe_open(self.folder / shard_name(shard), "pt") as file:
                metadata = json.loads(file.metadata()["items"])
                names = set(file.keys())
                tensors: list[Sequence[Tensor]] = []
                for name in map(str, range(self._tensors)):
                    if name in names:
                        tensors.append(file.get_tensor(name))
                    else:
                        items = range(len(metadata))
                        tensors.append([file.get_tensor(f"{name}.{item}") for item in items])
            self._loaded[shard] = tensors, metadata
        return self._loaded[shard]


def get_or_build(
    key: CacheKey, build: Builder, *, on_wait: Callable[[], None] = lambda: None
) -> FeatureStore:
    """Open the store of ``key``; build it first if it is missing or damaged.

    Args:
        build: called at most once, with the items of the missing shards.
        on_wait: called once if another process is building the store, before waiting for it.

    Raises:
        CacheFull: it does not fit into the cache or on the disk (see ``probes.features.store``).
    """
    folder, notes, built_bytes = key.folder, list[str](), 0
    with locked(store_lock(folder), on_wait):
        entries = [key.entry(number) for number in range(len(key.shards))]
        if error := integrity_error(folder, list(filter(None, entries))):
            notes.append(f"cached {key.kind} of {key.about} were damaged ({error}) and are rebuilt")
            log.warning("%s (%s)", notes[-1], folder)
            # without entries nothing counts; shards are replaced one by one, so that a process that
            # has the store open can go on reading
            for file in folder.glob("*.json"):
                file.unlink()
            entries = [{} for _ in entries]
        if not all(entries):
            pending = [number for number, entry in enumerate(entries) if not entry]
            built_bytes = _build(key, build, pending)
        touch(folder)
        return FeatureStore(key, acquire_liveness_lock(folder / "readers"), notes, built_bytes)


def _build(key: CacheKey, build: Builder, pending: Sequence[int]) -> int:
    """Write the pending shards; their size in bytes, about. The caller holds the lock."""
    folder, shards = key.folder, [key.shards[number] for number in pending]
    folder.mkdir(parents=True, exist_ok=True)
    for temporary in folder.glob(".*.tmp"):  # of a process that was killed
        temporary.unlink()
    size = sum(key.item_bytes[item] for shard in shards for item in shard)
    make_room(root(), size, key.about, remove_store)
    content = {"kind": key.kind, "about": key.about, "identity": key.identity}
    write_json(folder / "key.json", content)
    stream = iter(build(shards))
    for number, shard in zip(pending, shards, strict=True):
        items = {
            item: (tensors, metadata) for item, tensors, metadata in islice(stream, len(shard))
        }
        path = folder / shard_name(number)
        entry = _write_shard(path, key, [items[item] for item in shard])
        write_json(path.with_suffix(".json"), {**entry, "first": shard.start})
    return size


def _write_shard(
    path: Path, key: CacheKey, items: Sequence[tuple[Sequence[Tensor], Metadata]]
) -> dict[str, Any]:
    """Write a shard and return its entry: the n-th tensors of all items as tensor ``n`` where they
    have one shape, else as ``n.0``, ``n.1`` …"""
    tensors: dict[str, Tensor] = {}
    for number in range(len(key.dtypes)):
        values = [of_item[number] for of_item, _ in items]
        if len({value.shape for value in values}) == 1:
            tensors[str(number)] = torch.stack(values)
        else:
            tensors |= {f"{number}.{index}": value.clone() for index, value in enumerate(values)}
    metadata = json.dumps([dict(metadata) for _, metadata in items])
    with atomic_write(path) as temporary:
        save_file(tensors, temporary, {"items": metadata})
        size, sha256 = temporary.stat().st_size, sha256_file(temporary)
    store_hashes([(path, state_of(path), sha256)])
    return {"file": path.name, "bytes": size, "sha256": sha256}


def shard_name(number: int) -> str:
    return f"{number:05d}.safetensors"


def integrity_error(folder: Path, entries: Sequence[Mapping[str, Any]]) -> str:
    """What is wrong with the first damaged shard of some entries; empty if all are intact.

    Contents are hashed the first time, and again whenever size, time or inode have changed.
    """
    for entry in entries:
        try:
            size = (folder / entry["file"]).stat().st_size
        except OSError as error:
            return f"{entry['file']} cannot be read ({error.strerror})"
        if size != entry["bytes"]:
            return f"{entry['file']} has {size} bytes instead of {entry['bytes']}"
    try:
        hashes = content_hashes([folder / entry["file"] for entry in entries])
    except UserError as error:
        return str(error)
    for entry, sha256 in zip(entries, hashes, strict=True):
        if sha256 != entry["sha256"]:
            return f"the content of {entry['file']} has changed"
    return ""


def store_lock(folder: Path) -> Path:
    """The lock of a process that builds, opens or deletes a store."""
    return folder.with_name(f"{folder.name}.lock")


def remove_store(folder: Path) -> bool:
    """Delete a store unless a process uses or builds it; returns whether it is gone."""
    try:
        with locked(store_lock(folder), wait=False):
            if is_in_use(folder / "readers"):
                return False
            for entry in folder.glob("*.json"):  # first: then it is not complete
                entry.unlink()
            shutil.rmtree(folder, ignore_errors=True)
            record_of(folder).unlink(missing_ok=True)
    except Timeout:
        return False
    return not folder.exists()


def all_finite(maps: Sequence[Tensor]) -> bool:
    """Whether all values are; waits for the device once."""
    return bool(torch.stack([each.isfinite().all() for each in maps]).all())


def as_dtype(maps: Sequence[Tensor], name: str, about: str) -> list[Tensor]:
    """Float32 maps in the precision of the cache.

    Raises:
        UserError: a value does not fit into fp16.
    """
    cast = [value.to(DTYPES[name]) for value in maps]
    if name == "fp16" and not all_finite(cast):
        raise UserError(
            f"features of {about} do not fit into fp16 (beyond ±65504, or not finite); use"
            " cache=bf16"
        )
    return cast
