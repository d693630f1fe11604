"""Tensors that are slow to compute, cached by content: feature maps, crops of ground truth,
embeddings.

A *store* is a folder ``$CLIPTEX_HOME/features/KEY`` of memory-mapped safetensors files. KEY is a
hash of everything that the tensors follow from (see ``CacheKey``). Each shard is written beside its
path and renamed, then its entry, with size and sha256. A store is complete when every shard has its
entry, so an interrupted build resumes after its last complete shard. A damaged store is reported
and rebuilt. One process builds a store while others wait, and each open store holds a lock that
keeps it from being deleted."""

from __future__ import annotations

import json
import logging
import shutil
from bisect import bisect_right
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from cliptex_common.errors import NonFiniteLoss, UserError
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
from probes.features.files import (
    content_hashes,
    make_room,
    record_of,
    state_of,
    store_hashes,
    touch,
)

STORE_VERSION = 4  # raised whenever the same key would give other bytes
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
        content = [STORE_VERSION, self.kind, self.identity, self.dtypes, len(self.item_bytes)]
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
        CacheFull: it does not fit into the cache or on the disk (see ``make_room``).
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


def cast_features(features: Sequence[Tensor], dtype: str, about: str) -> list[Tensor]:
    """Float32 features in a dtype of ``DTYPES``; waits for the device. Whoever stores features, or
    matches them, asks here first.

    Raises:
        NonFiniteLoss: a feature is not finite.
        UserError: a feature does not fit into fp16.
    """
    if not _are_finite(features):
        raise NonFiniteLoss(f"features of {about} are not finite")
    cast = [each.to(DTYPES[dtype]) for each in features]
    if dtype == "fp16" and not _are_finite(cast):
        raise UserError(f"features of {about} do not fit into fp16 (beyond ±65504); use cache=bf16")
    return cast


def _are_finite(features: Sequence[Tensor]) -> bool:
    return bool(torch.stack([each.isfinite().all() for each in features]).all())
