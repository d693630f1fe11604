"""Tensors that took long to make, kept by content: dense feature maps, crops of the ground truth,
global embeddings.

A *store* is a folder ``$CLIPTEX_HOME/features/KEY`` of memory-mapped safetensors files, where KEY
is a hash of all that made the tensors (see ``CacheKey``). Each shard is written beside its place
and renamed, then its entry; the manifest, with every shard's size and checksum, comes last, so that
whatever a killed process leaves never counts as done – and the shards that it finished are not made
twice. A shard that is cut short or altered is found when the store is opened, said, and made again.
A lock keeps two processes from making one store at once (the second waits), and each open store has
a lock of its own, which keeps it from being removed.
"""

from __future__ import annotations

import json
import logging
import shutil
from bisect import bisect_right
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from common.errors import UserError
from common.files import atomic_write, content_key, home, read_json_object, sha256_file, write_json
from common.locks import acquire_reader_lock, is_locked, locked, release_reader_lock
from probes.features import budget
from probes.features.content_hashes import memory, remember, remembered
from probes.features.members import State, state_of

VERSION = 3  # raised whenever the same key would give other bytes
SHARD_BYTES = 64 * 2**20
DTYPES = {
    "fp32": torch.float32,
    "fp16": torch.float16,
    "bf16": torch.bfloat16,
    "uint8": torch.uint8,
    "uint16": torch.uint16,
}
log = logging.getLogger("cliptex.features")


@dataclass(frozen=True)
class CacheKey:
    """What a store holds and all that made it.

    Attributes:
        kind: ``dense maps``, ``ground truth`` or ``embeddings``.
        about: one line for people, e.g. ``clip on mini-seg, train``.
        identity: all that the tensors follow from, JSON-able: weights, images, crop, layers,
            precision …
        dtypes: of the tensors of each item, keys of ``DTYPES``.
        item_bytes: bytes of each item's tensors, in the order of the items; what the size is
            estimated from.
    """

    kind: str
    about: str
    identity: Mapping[str, Any]
    dtypes: tuple[str, ...]
    item_bytes: Sequence[int] = field(repr=False)

    @property
    def digest(self) -> str:
        """What the store is found by."""
        return content_key(
            {
                "version": VERSION,
                "kind": self.kind,
                "identity": self.identity,
                "dtypes": self.dtypes,
                "items": len(self.item_bytes),
            },
            32,
        )

    @property
    def folder(self) -> Path:
        return root() / self.digest

    @property
    def shards(self) -> list[range]:
        """The items of each shard; about ``SHARD_BYTES`` each."""
        parts, start, size = [], 0, 0
        for item, more in enumerate(self.item_bytes):
            if item > start and size + more > SHARD_BYTES:
                parts.append(range(start, item))
                start, size = item, 0
            size += more
        return [*parts, range(start, len(self.item_bytes))]


# What makes items: given the items wanted, shard by shard, it yields (item, tensors, metadata of it
# that is JSON), all of one shard before any of the next, in any order within.
Builder = Callable[
    [Sequence[Sequence[int]]], Iterable[tuple[int, Sequence[Tensor], Mapping[str, Any]]]
]


def root() -> Path:
    """Where all stores are."""
    return home() / "features"


class Store:
    """A finished store, open for reading; it cannot be removed by another process while it is.

    Attributes:
        folder: where it is.
        notes: what was wrong with it and was mended, one line each.
    """

    def __init__(
        self, folder: Path, manifest: Mapping[str, Any], lock: FileLock, notes: Sequence[str] = ()
    ) -> None:
        self.folder, self.notes, self._lock = folder, notes, lock
        self._kinds, self._items = len(manifest["dtypes"]), manifest["items"]
        self._first = [shard["first"] for shard in manifest["shards"]]
        self._files = [shard["file"] for shard in manifest["shards"]]
        self._parts: dict[int, tuple[list[Sequence[Tensor]], list[dict[str, Any]]]] = {}

    def __len__(self) -> int:
        return self._items

    def __getitem__(self, item: int) -> list[Tensor]:
        """The tensors of one item, as they lie on disk (mapped, not read; writing to them changes
        no file)."""
        number, place = self._find(item)
        return [each[place] for each in self._part(number)[0]]

    def metadata(self, item: int) -> dict[str, Any]:
        """What else is known about an item."""
        number, place = self._find(item)
        return self._part(number)[1][place]

    def stacked(self) -> Tensor:
        """The first tensor of every item, all of one shape: mapped if it is a single shard, else
        copied once."""
        parts: Any = [self._part(number)[0][0] for number in range(len(self._files))]
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def close(self) -> None:
        """Forget the files and let others remove them."""
        self._parts.clear()
        release_reader_lock(self._lock)

    def _find(self, item: int) -> tuple[int, int]:
        """(shard, place in it) of an item."""
        if not 0 <= item < self._items:
            raise IndexError(f"item {item} of {self._items}")
        number = bisect_right(self._first, item) - 1
        return number, item - self._first[number]

    def _part(self, number: int) -> tuple[list[Sequence[Tensor]], list[dict[str, Any]]]:
        """A shard's tensors – for each kind those of its items – and the items' metadata."""
        if number not in self._parts:
            with safe_open(self.folder / self._files[number], "pt") as file:
                metadata = json.loads(file.metadata()["items"])
                names = set(file.keys())
                tensors = [
                    (
                        file.get_tensor(str(kind))
                        if str(kind) in names
                        else [file.get_tensor(f"{kind}.{place}") for place in range(len(metadata))]
                    )
                    for kind in range(self._kinds)
                ]
            self._parts[number] = tensors, metadata
        return self._parts[number]


def get_or_build(key: CacheKey, build: Builder, *, wait: Callable[[], None] | None = None) -> Store:
    """The store of ``key``, opened; what is not there yet, or is damaged, is made by ``build``.

    Args:
        build: called at most once, with the items of the shards that are missing.
        wait: called once when another process is making the same store, before waiting for it.

    Raises:
        NoRoom: it does not fit into the budget or on the disk (see ``probes.features.budget``).
    """
    folder, notes = key.folder, list[str]()
    with locked(lock_path(folder), wait or (lambda: None)):
        manifest = read_manifest(folder)
        wrong = verify(folder, manifest) if manifest is not None else {}
        for reason in wrong.values():
            notes.append(f"a kept shard of {key.about} was damaged ({reason}) and made again")
            log.warning("%s (%s)", notes[-1], folder)
        made = manifest is None or bool(wrong)
        if (
            made
        ):  # who has a damaged store open keeps the files that it reads: others take their place
            folder.mkdir(parents=True, exist_ok=True)
            _make(key, build)
            manifest = read_manifest(folder)
        if manifest is None or (made and verify(folder, manifest)):
            raise RuntimeError(
                f"{folder} was made and is not whole: is something else writing there?"
            )
        budget.touch(folder)
        return Store(folder, manifest, acquire_reader_lock(folder / "readers"), notes)


def _make(key: CacheKey, build: Builder) -> None:
    """Write the shards that are not there whole, then the manifest. The caller holds the lock."""
    folder, shards = key.folder, key.shards
    (folder / "manifest.json").unlink(missing_ok=True)
    for left in folder.glob(".*.tmp"):  # by a process that was killed
        left.unlink()
    known = remembered(folder)
    entries = [
        _finished(folder / shard_name(number), items, known) for number, items in enumerate(shards)
    ]
    missing = [number for number, entry in enumerate(entries) if entry is None]
    size = sum(key.item_bytes[item] for number in missing for item in shards[number])
    budget.reserve(root(), folder, size, key.about, remove)
    write_json(
        folder / "key.json", {"kind": key.kind, "about": key.about, "identity": key.identity}
    )
    stream = iter(build([shards[number] for number in missing]))
    for number in missing:
        items = shards[number]
        found: dict[int, tuple[list[Tensor], Mapping[str, Any]]] = {}
        while len(found) < len(items):
            item, tensors, metadata = next(stream)
            if item not in items or item in found or len(tensors) != len(key.dtypes):
                raise RuntimeError(
                    f"item {item} was made while those of shard {number} were wanted"
                )
            found[item] = list(tensors), metadata
        entries[number] = _write_shard(
            folder / shard_name(number), key, [found[item] for item in items], items[0]
        )
    manifest = {
        "version": VERSION,
        "key": key.digest,
        "kind": key.kind,
        "about": key.about,
        "identity": key.identity,
        "dtypes": list(key.dtypes),
        "items": len(key.item_bytes),
        "shards": entries,
    }
    budget.touch(folder)
    write_json(folder / "manifest.json", {**manifest, "sha256": content_key(manifest, 64)})
    budget.release(folder)


def shard_name(number: int) -> str:
    return f"{number:05d}.safetensors"


def entry_path(shard: Path) -> Path:
    """Where the manifest's entry of a shard is until there is a manifest."""
    return shard.with_suffix(".json")


def _write_shard(
    path: Path, key: CacheKey, items: Sequence[tuple[list[Tensor], Mapping[str, Any]]], first: int
) -> dict[str, Any]:
    """Write a shard and then its entry of the manifest, which is returned too. Tensors of one shape
    are one tensor in it."""
    tensors: dict[str, Tensor] = {}
    for kind, name in enumerate(key.dtypes):
        each = [of_item[kind] for of_item, _ in items]
        if wrong := {one.dtype for one in each} - {DTYPES[name]}:
            raise TypeError(f"{key.about}: {wrong} where {name} was declared")
        if len({one.shape for one in each}) == 1:
            tensors[str(kind)] = torch.stack(each)
        else:
            tensors |= {f"{kind}.{place}": one.clone() for place, one in enumerate(each)}
    with atomic_write(path) as temporary:
        save_file(
            tensors, temporary, {"items": json.dumps([dict(metadata) for _, metadata in items])}
        )
        size, sha256 = temporary.stat().st_size, sha256_file(temporary)  # which reads it back
    remember([(path, state_of(path), sha256)])
    entry = {
        "file": path.name,
        "first": first,
        "items": len(items),
        "bytes": size,
        "sha256": sha256,
    }
    write_json(entry_path(path), entry)
    return entry


def _finished(
    shard: Path, items: range, known: Mapping[str, tuple[State, str]]
) -> dict[str, Any] | None:
    """The manifest's entry of a shard that is whole; None for any other."""
    entry = read_json_object(entry_path(shard))
    whole = (
        entry
        and (entry["first"], entry["items"]) == (items.start, len(items))
        and not _damage(shard, entry, known)
    )
    return entry if whole else None


def read_manifest(folder: Path) -> dict[str, Any] | None:
    """The manifest of a finished store; None where there is none that is whole and of this
    version."""
    manifest = read_json_object(folder / "manifest.json")
    told = manifest.pop("sha256", "")
    right = (
        content_key(manifest, 64) == told
        and manifest["version"] == VERSION
        and manifest["key"] == folder.name
    )
    return manifest if right else None


def verify(folder: Path, manifest: Mapping[str, Any], *, full: bool = False) -> dict[str, str]:
    """File name of each shard that is not what the manifest says → why.

    Sizes are always looked at. Contents are hashed the first time and whenever size, time or inode
    have changed since (see ``probes.features.content_hashes``); always when ``full``.
    """
    known = {} if full else remembered(folder)
    found = {
        entry["file"]: _damage(folder / entry["file"], entry, known) for entry in manifest["shards"]
    }
    return {name: reason for name, reason in found.items() if reason}


def _damage(shard: Path, entry: Mapping[str, Any], known: Mapping[str, tuple[State, str]]) -> str:
    """What is wrong with a shard; empty when nothing is. It is not read where its content is
    ``known``."""
    try:
        state = state_of(shard)
        if state[0] != entry["bytes"]:
            return f"{shard.name} has {state[0]} bytes instead of {entry['bytes']}"
        if known.get(shard.name) != (state, entry["sha256"]):
            if sha256_file(shard) != entry["sha256"]:
                return f"the content of {shard.name} has changed"
            remember([(shard, state, entry["sha256"])])
    except OSError as error:
        return f"{shard.name} cannot be read ({error.strerror})"
    return ""


def lock_path(folder: Path) -> Path:
    """The lock of whoever makes, opens or removes a store."""
    return folder.with_name(f"{folder.name}.lock")


def in_use(folder: Path) -> bool:
    """Whether a process has the store open. The caller holds the store's lock."""
    return any(map(is_locked, (folder / "readers").glob("*.lock")))


def remove(folder: Path) -> bool:
    """Remove a store, unless a process is using or making it; returns whether it is gone."""
    try:
        with locked(lock_path(folder), wait=False):
            if in_use(folder):
                return False
            (folder / "manifest.json").unlink(missing_ok=True)  # first what makes it count
            shutil.rmtree(folder, ignore_errors=True)
            memory(folder).unlink(missing_ok=True)
    except Timeout:
        return False
    return not folder.exists()


def as_dtype(maps: Sequence[Tensor], name: str, about: str) -> list[Tensor]:
    """Float32 maps in the precision that they are kept in.

    Raises:
        UserError: a value does not fit into fp16.
    """
    kept = [one.to(DTYPES[name]) for one in maps]
    if name == "fp16" and not all(bool(one.isfinite().all()) for one in kept):
        raise UserError(
            f"features of {about} do not fit into fp16 (beyond ±65504, or not finite); use"
            " cache=bf16"
        )
    return kept
