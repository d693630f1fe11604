"""Arrays that took long to make, kept by content: dense feature maps, views of the truth, global embeddings.

A *store* is a folder ``$CLIPTEX_HOME/features/KEY`` of memory-mapped shards, where KEY is a hash of all that made the
arrays (see ``Recipe``). Each shard is written beside its place and renamed, then its index; the manifest, with every
shard's size and checksum, comes last, so that whatever a killed process leaves never counts as done – and the shards
that it finished are not made twice. A shard that is cut short or altered is found when the store is opened, said, and
made again. A lock keeps two processes from making one store at once (the second waits), and each open store has a lock of its
own, which keeps it from being removed.
"""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from filelock import FileLock, Timeout
from torch import Tensor

from backbones.errors import UserError
from backbones.files import content_key, home, replacing, write_json, write_text
from backbones.locks import locked
from probes.features import budget
from probes.features.lock import in_use, leave, lock_path, reading

VERSION = 2  # raised whenever the same recipe would give other bytes
SHARD_BYTES = 64 * 2**20
ALIGNMENT = 64
DTYPES: dict[str, tuple[torch.dtype, np.dtype[Any]]] = {
    "fp32": (torch.float32, np.dtype(np.float32)),
    "fp16": (torch.float16, np.dtype(np.float16)),
    "bf16": (torch.bfloat16, np.dtype(np.int16)),  # numpy has none: its bits travel as integers
    "uint8": (torch.uint8, np.dtype(np.uint8)),
    "uint16": (torch.uint16, np.dtype(np.uint16)),
}
log = logging.getLogger("cliptex.features")


@dataclass(frozen=True)
class Recipe:
    """What a store holds and all that made it.

    Attributes:
        kind: ``dense maps``, ``truth`` or ``embeddings``.
        about: one line for people, e.g. ``clip on mini-seg, train``.
        identity: all that the arrays follow from, JSON-able: weights, images, view, layers, precision …
        dtypes: of the arrays of each item, keys of ``DTYPES``.
        item_bytes: bytes of each item's arrays, in the order of the items; what the size is estimated from.
    """

    kind: str
    about: str
    identity: Mapping[str, Any]
    dtypes: tuple[str, ...]
    item_bytes: Sequence[int] = field(repr=False)

    @property
    def key(self) -> str:
        """What the store is found by."""
        return content_key(
            {"version": VERSION, "kind": self.kind, "identity": self.identity, "dtypes": self.dtypes,
             "items": len(self.item_bytes)}, 32,
        )  # fmt: skip

    @property
    def folder(self) -> Path:
        return root() / self.key

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


# What makes items: given the items wanted, shard by shard, it yields (item, arrays, facts about it that are JSON),
# all of one shard before any of the next, in any order within.
Maker = Callable[[Sequence[Sequence[int]]], Iterable[tuple[int, Sequence[Tensor], Mapping[str, Any]]]]


def root() -> Path:
    """Where all stores are."""
    return home() / "features"


class Store:
    """A finished store, open for reading; it cannot be removed by another process while it is.

    Attributes:
        folder: where it is.
        made: whether (part of) it was made just now.
        notes: what was wrong with it and was mended, one line each.
    """

    def __init__(self, folder: Path, manifest: Mapping[str, Any], lock: FileLock) -> None:
        self.folder, self.made, self.notes = folder, False, list[str]()
        self._lock = lock
        self._dtypes = [DTYPES[name] for name in manifest["dtypes"]]
        self._first = [shard["first"] for shard in manifest["shards"]]
        self._items = manifest["items"]
        self._files = [shard["file"] for shard in manifest["shards"]]
        self._parts: dict[int, tuple[np.ndarray, dict[str, Any]]] = {}

    def __len__(self) -> int:
        return self._items

    def __getitem__(self, item: int) -> list[Tensor]:
        """The arrays of one item, as they lie on disk (mapped, not read; writing to them changes no file)."""
        data, index, place = self._find(item)
        return [
            _mapped(data, offset, shape, *dtype)
            for (offset, shape), dtype in zip(index["arrays"][place], self._dtypes, strict=True)
        ]

    def facts(self, item: int) -> dict[str, Any]:
        """What else is known about an item."""
        _, index, place = self._find(item)
        return index["facts"][place]

    def stacked(self) -> Tensor:
        """The first array of every item, which must all have one shape, copied into one tensor."""
        whole: Tensor | None = None
        for number in range(len(self._files)):
            data, index = self._part(number)
            shapes = {tuple(arrays[0][1]) for arrays in index["arrays"]}
            (shape,) = shapes
            torch_type, numpy_type = self._dtypes[0]
            offsets = [arrays[0][0] for arrays in index["arrays"]]
            step = offsets[1] - offsets[0] if len(offsets) > 1 else 0
            inner = np.empty(shape, numpy_type).strides
            part: np.ndarray = np.ndarray((len(offsets), *shape), numpy_type, data.data, offsets[0], (step, *inner))
            if whole is None:
                whole = torch.empty((self._items, *shape), dtype=torch_type)
            first = self._first[number]
            whole[first : first + len(offsets)] = torch.from_numpy(np.ascontiguousarray(part)).view(torch_type)
        assert whole is not None
        return whole

    def close(self) -> None:
        """Forget the files and let others remove them."""
        self._parts.clear()
        leave(self._lock)

    def _find(self, item: int) -> tuple[np.ndarray, dict[str, Any], int]:
        if not 0 <= item < self._items:
            raise IndexError(f"item {item} of {self._items}")
        number = int(np.searchsorted(self._first, item, side="right")) - 1
        return *self._part(number), item - self._first[number]

    def _part(self, number: int) -> tuple[np.ndarray, dict[str, Any]]:
        if number not in self._parts:
            path = self.folder / self._files[number]
            index = json.loads(index_path(path).read_text(encoding="utf-8"))
            self._parts[number] = np.memmap(path, np.uint8, "c"), index
        return self._parts[number]


def _mapped(data: np.ndarray, offset: int, shape: Sequence[int], torch_type: torch.dtype, kind: np.dtype) -> Tensor:
    array: np.ndarray = np.ndarray(tuple(shape), kind, data.data, offset)
    return torch.from_numpy(array).view(torch_type)


def ensure(recipe: Recipe, make: Maker, *, wait: Callable[[], None] | None = None) -> Store:
    """The store of ``recipe``, opened; what is not there yet, or is damaged, is made by ``make``.

    Args:
        make: see ``Maker``; called at most once, with the items of the shards that are missing.
        wait: called once when another process is making the same store, before waiting for it.

    Raises:
        UserError: it does not fit into the budget or on the disk (see ``probes.features.budget``).
    """
    folder, notes = recipe.folder, list[str]()
    with locked(lock_path(folder), wait or (lambda: None)):
        manifest = read_manifest(folder)
        wrong = damages(folder, manifest) if manifest is not None else {}
        for reason in wrong.values():
            notes.append(f"a kept shard of {recipe.about} was damaged ({reason}) and made again")
            log.warning("%s (%s)", notes[-1], folder)
        made = manifest is None or bool(wrong)
        if made:  # who has a damaged store open keeps the files that it reads: others take their place
            folder.mkdir(parents=True, exist_ok=True)
            _make(recipe, make)
            manifest = read_manifest(folder)
        if manifest is None or (made and damages(folder, manifest)):
            raise RuntimeError(f"{folder} was made and is not whole: is something else writing there?")
        budget.touch(folder)
        store = Store(folder, manifest, reading(folder))
        store.made, store.notes = made, notes
        return store


def _make(recipe: Recipe, make: Maker) -> None:
    """Write the shards that are not there whole, then the manifest. The caller holds the lock."""
    folder, shards = recipe.folder, recipe.shards
    with suppress(FileNotFoundError):
        (folder / "manifest.json").unlink()
    for left in folder.glob(".*.tmp"):  # by a process that was killed
        left.unlink()
    entries: dict[int, dict[str, Any]] = {}
    for number, items in enumerate(shards):
        entry = _finished(folder / shard_name(number), items)
        if entry is not None:
            entries[number] = entry
    missing = [number for number in range(len(shards)) if number not in entries]
    size = sum(recipe.item_bytes[item] for number in missing for item in shards[number])
    budget.reserve(root(), folder, size, recipe.about, remove)
    write_json(folder / "recipe.json", {"kind": recipe.kind, "about": recipe.about, "identity": recipe.identity})
    stream = iter(make([shards[number] for number in missing]))
    for number in missing:
        items = shards[number]
        found: dict[int, tuple[list[Tensor], Mapping[str, Any]]] = {}
        while len(found) < len(items):
            item, arrays, facts = next(stream)
            if item not in items or item in found or len(arrays) != len(recipe.dtypes):
                raise RuntimeError(f"item {item} was made while those of shard {number} were wanted")
            found[item] = list(arrays), facts
        entries[number] = _write_shard(folder / shard_name(number), recipe, [found[item] for item in items], items[0])
    manifest = {
        "version": VERSION, "key": recipe.key, "kind": recipe.kind, "about": recipe.about, "identity": recipe.identity,
        "dtypes": list(recipe.dtypes), "items": len(recipe.item_bytes), "shards": [entries[n] for n in sorted(entries)],
    }  # fmt: skip
    budget.touch(folder)
    write_json(folder / "manifest.json", {**manifest, "sha256": content_key(manifest, 64)})
    budget.release(folder)


def shard_name(number: int) -> str:
    return f"{number:05d}.bin"


def index_path(shard: Path) -> Path:
    return shard.with_suffix(".json")


def _write_shard(
    path: Path, recipe: Recipe, items: Sequence[tuple[list[Tensor], Mapping[str, Any]]], first: int
) -> dict[str, Any]:
    """Write a shard and then its index; returns its entry of the manifest, which the index holds too."""
    digest, place = hashlib.sha256(), 0
    places: list[list[tuple[int, list[int]]]] = []
    with replacing(path) as temporary, temporary.open("wb") as file:
        for arrays, _ in items:
            arrays_of: list[tuple[int, list[int]]] = []
            for tensor, name in zip(arrays, recipe.dtypes, strict=True):
                torch_type, numpy_type = DTYPES[name]
                if tensor.dtype != torch_type:
                    raise TypeError(f"{recipe.about}: {tensor.dtype} where {torch_type} was declared")
                array = tensor.contiguous().cpu()
                data = (array.view(torch.int16) if name == "bf16" else array).numpy().astype(numpy_type, copy=False)
                arrays_of.append((place, list(tensor.shape)))
                padding = bytes(-data.nbytes % ALIGNMENT)
                for part in (data.reshape(-1).view(np.uint8).data, padding):
                    file.write(part)
                    digest.update(part)
                place += data.nbytes + len(padding)
            places.append(arrays_of)
        file.flush()
    index = {"arrays": places, "facts": [dict(facts) for _, facts in items]}
    entry = {
        "file": path.name, "first": first, "items": len(items), "bytes": place, "sha256": digest.hexdigest(),
        "index": content_key(json.loads(json.dumps(index)), 64),
    }  # fmt: skip
    write_text(index_path(path), json.dumps({**index, "entry": entry}))
    return entry


def _finished(shard: Path, items: range) -> dict[str, Any] | None:
    """The manifest's entry of a shard that is whole, by its own index; None for any other."""
    try:
        entry = json.loads(index_path(shard).read_text(encoding="utf-8"))["entry"]
        whole = (entry["first"], entry["items"]) == (items.start, len(items)) and entry["file"] == shard.name
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return entry if whole and not _damage(shard, entry) else None


def read_manifest(folder: Path) -> dict[str, Any] | None:
    """The manifest of a finished store; None where there is none that is whole and of this version."""
    try:
        manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
        told = manifest.pop("sha256")
        right = content_key(manifest, 64) == told and manifest["version"] == VERSION and manifest["key"] == folder.name
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
    return manifest if right else None


def damages(folder: Path, manifest: Mapping[str, Any], *, full: bool = False) -> dict[str, str]:
    """File name of each shard that is not what the manifest says → why.

    Sizes are always looked at. Contents are hashed the first time and whenever size, time or inode have changed since;
    always when ``full``.
    """
    stamps_file = folder / "verified.json"
    try:
        known = {} if full else json.loads(stamps_file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        known = {}
    wrong: dict[str, str] = {}
    stamps: dict[str, Any] = {}
    for entry in manifest["shards"]:
        shard = folder / entry["file"]
        stamp = [_stat(shard), _stat(index_path(shard))]
        if known.get(entry["file"]) == stamp and stamp[0] and stamp[0][0] == entry["bytes"]:
            stamps[entry["file"]] = stamp
        elif reason := _damage(shard, entry):
            wrong[entry["file"]] = reason
        else:
            stamps[entry["file"]] = stamp
    if stamps != known:
        with suppress(UserError):  # a read-only cache is a slower one
            write_json(stamps_file, stamps)
    return wrong


def _stat(path: Path) -> list[int] | None:
    try:
        status = path.stat()
    except OSError:
        return None
    return [status.st_size, status.st_mtime_ns, status.st_ino]


def _damage(shard: Path, entry: Mapping[str, Any]) -> str:
    """What is wrong with a shard or its index; empty when nothing is."""
    try:
        size = shard.stat().st_size
        if size != entry["bytes"]:
            return f"{shard.name} has {size} bytes instead of {entry['bytes']}"
        with shard.open("rb") as file:
            if hashlib.file_digest(file, "sha256").hexdigest() != entry["sha256"]:
                return f"the content of {shard.name} has changed"
        index = json.loads(index_path(shard).read_text(encoding="utf-8"))
        index.pop("entry")
        if content_key(index, 64) != entry["index"]:
            return f"the index of {shard.name} has changed"
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        return f"{shard.name} cannot be read ({getattr(error, 'strerror', None) or type(error).__name__})"
    return ""


def remove(folder: Path) -> bool:
    """Remove a store, unless a process is using or making it; returns whether it is gone."""
    try:
        with locked(lock_path(folder), wait=False):
            if in_use(folder):
                return False
            with suppress(FileNotFoundError):  # first what makes it count
                (folder / "manifest.json").unlink()
            shutil.rmtree(folder, ignore_errors=True)
    except Timeout:
        return False
    return not folder.exists()


def as_dtype(maps: Sequence[Tensor], name: str, about: str) -> list[Tensor]:
    """Float32 maps in the precision that they are kept in.

    Raises:
        UserError: a value does not fit into fp16.
    """
    torch_type, _ = DTYPES[name]
    kept = [one.to(torch_type) for one in maps]
    if name == "fp16" and not all(bool(one.isfinite().all()) for one in kept):
        raise UserError(f"features of {about} do not fit into fp16 (beyond ±65504, or not finite); use cache=bf16")
    return kept


__all__ = ["DTYPES", "Maker", "Recipe", "Store", "as_dtype", "damages", "ensure", "read_manifest", "remove", "root"]
