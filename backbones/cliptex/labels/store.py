"""A label store: hard labels of image-caption pairs by key, a tar for each shard of pairs.

    labels/
      00000.tar, 00000.tar.json …   see ``shards``
      manifest.json                 written last: identity, counts, failures, digests of the shards

The positions of the labels are a table that all processes of a machine share; see
``cliptex_common.tables``.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np

from backbones.cliptex.labels.shards import (
    VERSION,
    DamagedShard,
    ShardWriter,
    check_shard,
    member_name,
    read_summary,
    tar_path,
    writing_shard,
)
from backbones.cliptex.tasks import find_task, ordered
from cliptex_common.errors import UserError, report_malformed
from cliptex_common.files import content_key, read_json, write_json
from cliptex_common.images import IMAGE_ERRORS
from cliptex_common.tables import Contents, Table, cached_table
from cliptex_common.tar_index import list_members, read_member

MANIFEST = "manifest.json"
FIELDS = {"key", "tasks", "classes", "shards", "failed", "pairs_in", "pairs_out"}
# Short side that labels are kept at. A ViT-B/16 at 224 pixels learns from four labels a patch, 56,
# of at least nine tenths of the image by area: that is 59 of the whole.
LABEL_SIDE = 60
Classes = Mapping[str, Sequence[str]]


def store_key(identity: Mapping[str, Any], classes: Classes) -> str:
    """``key`` in the manifest of a store of this identity: 32 hex digits."""
    named = {task: list(names) for task, names in classes.items()}
    return content_key({"version": VERSION, "identity": dict(identity), "classes": named}, 32)


def encode(labels: Mapping[str, np.ndarray]) -> dict[str, bytes]:
    """An image's labels, by task, as files by suffix (``seg.png``).

    The costliest part of writing; its codecs release the interpreter's lock.
    """
    return {suffix_of(name): find_task(name).encode(label) for name, label in labels.items()}


def suffix_of(task: str) -> str:
    """Suffix of a task's files."""
    return f"{task}.{find_task(task).suffix}"


class LabelWriter:
    """Writes a store, shard by shard, in any order and from any number of processes.

    ``finish`` is called once at the end.

    Args:
        identity: what decides the labels (experts, their weights, the pairs), JSON-able; a resumed
            labelling keeps only finished shards of the same identity.
        classes: task → names of its classes by index.

    Raises:
        UserError: the folder holds labels of another identity.
    """

    def __init__(
        self,
        root: str | os.PathLike[str],
        identity: Mapping[str, Any],
        tasks: Iterable[str],
        classes: Classes | None = None,
    ) -> None:
        self.root, self.identity, self.tasks = Path(root), dict(identity), ordered(tasks)
        self.classes = {task: list(names) for task, names in (classes or {}).items()}
        self.key = store_key(self.identity, self.classes)
        if (self.root / MANIFEST).is_file() and read_manifest(self.root)["key"] != self.key:
            raise UserError(
                f"{self.root} holds labels of other experts or pairs; choose another --out, or"
                " remove that folder"
            )

    def finished(
        self, name: str, notify: Callable[[str], None] = lambda line: None, *, hashed: bool = True
    ) -> dict[str, Any] | None:
        """The summary of a shard of this identity that is intact; None if it has to be written.

        Args:
            notify: gets a line about a shard that has to be written again.
            hashed: check every byte, not the size alone.
        """
        try:
            if (summary := read_summary(self.root, name)) is None:
                return None
            if summary["identity"] != self.key:
                raise DamagedShard(
                    f"{tar_path(self.root, name)} was made by other experts or from other pairs"
                )
            check_shard(self.root, summary, hashed=hashed)
            return summary
        except DamagedShard as error:
            notify(f"{error}: labelling shard {name} again")
            return None

    def shard(self, name: str) -> AbstractContextManager[ShardWriter]:
        """Begin (again) the shard ``name``."""
        return writing_shard(self.root, name, self.key)

    def finish(self, shards: Sequence[Mapping[str, Any]], **extra: Any) -> dict[str, Any]:
        """Write and return the manifest over all shards, as ``finished`` gives them.

        ``extra`` goes into it (cost …).
        """
        for temporary in self.root.glob(".*.tmp"):  # of a process that was killed
            temporary.unlink(missing_ok=True)
        out, size = sum(shard["pairs"] for shard in shards), sum(shard["bytes"] for shard in shards)
        failed = [pair for shard in shards for pair in shard["failed"]]
        manifest = {
            "version": VERSION,
            "key": self.key,
            "identity": self.identity,
            "tasks": {
                task: {"suffix": suffix_of(task), "lost": find_task(task).quantisation}
                for task in self.tasks
            },
            "classes": self.classes,
            "pairs_in": out + len(failed),
            "pairs_out": out,
            "bytes": size,
            "bytes_per_image": round(size / max(out, 1), 1),
            "failed": failed,
            "shards": [
                {name: shard[name] for name in ("name", "sha256", "bytes", "pairs")}
                for shard in shards
            ],
            **extra,
        }
        write_json(self.root / MANIFEST, manifest)
        return manifest


class LabelStore:
    """A finished store, read by key. Cheap to pickle and to share with worker processes.

    Attributes:
        manifest: as ``LabelWriter.finish`` wrote it.
        identity: digest of experts, pairs and every shard's bytes.
        tasks: of the labels.
        classes: task → names of its classes, by index.

    Raises:
        UserError: the store is not finished, or a shard's file is missing or cut off.
    """

    def __init__(self, root: str | os.PathLike[str]) -> None:
        self.root = Path(root)
        self.manifest = read_manifest(self.root)
        self.tasks: tuple[str, ...] = tuple(self.manifest["tasks"])
        self.classes: Classes = self.manifest["classes"]
        self._suffixes = tuple(each["suffix"] for each in self.manifest["tasks"].values())
        shards = self.manifest["shards"]
        self.names = [shard["name"] for shard in shards]
        self.identity: str = content_key(
            [self.manifest["key"], [shard["sha256"] for shard in shards]], 32
        )
        self._numbers = {name: number for number, name in enumerate(self.names)}
        self._mtimes: list[int] = []
        for shard in shards:
            path = tar_path(self.root, shard["name"])
            if not path.is_file() or (stat := path.stat()).st_size != shard["bytes"]:
                raise UserError(
                    f"{path} is missing or cut off; run the same label command again to repair it"
                )
            self._mtimes.append(stat.st_mtime_ns)

    def __len__(self) -> int:
        return int(self.manifest["pairs_out"])

    def get(self, key: str, tasks: Collection[str] | None = None) -> dict[str, np.ndarray]:
        """The labels of the pair ``key``, as each task decodes them.

        ``seg``: (H, W) class numbers; ``depth``: (H, W) float32 in [0, 1], 1 is nearest, NaN
        unknown; ``normal``: (3, H, W) float32, zero unknown.

        Args:
            tasks: only these; None for all.

        Raises:
            KeyError: the store has no labels for it; ``manifest['failed']`` may say why.
            UserError: the bytes on disk have changed.
        """
        labels, (number, row) = {}, self._find(key)
        path, positions = tar_path(self.root, self.names[number]), self._table["positions"][row]
        for name, (offset, size) in zip(self.tasks, positions, strict=True):
            if size < 0 or (tasks is not None and name not in tasks):
                continue
            try:
                labels[name] = find_task(name).decode(
                    read_member(path, self._mtimes[number], offset, size)
                )
            except IMAGE_ERRORS as error:
                raise UserError(
                    f"{name} of {key} in {path} is damaged ({error}); run the same label command"
                    " again to repair it"
                ) from error
        return labels

    def tasks_of(self, key: str) -> tuple[str, ...]:
        """Tasks that the pair ``key`` has labels for; nothing is decoded."""
        try:
            positions = self._table["positions"][self._find(key)[1]]
        except KeyError:
            return ()
        return tuple(
            name for name, size in zip(self.tasks, positions[:, 1], strict=True) if size >= 0
        )

    @functools.cached_property
    def _table(self) -> Table:
        inputs = [VERSION, str(self.root.resolve()), self.identity, self._mtimes]
        return cached_table("label-index", inputs, self._index)

    def _index(self) -> Contents:
        """The table's arrays.

        ``keys``, sorted within each shard; ``positions``: offset and size of each task's file;
        ``starts`` of the shards.
        """
        keys, positions = [], []
        for name in self.names:
            tar, _ = list_members(tar_path(self.root, name), self._suffixes)
            order = np.argsort(tar["keys"])
            keys.append(tar["keys"][order])
            positions.append(tar["spans"][order])
        return {
            "keys": np.concatenate(keys),
            "positions": np.concatenate(positions),
            "starts": np.cumsum([0, *map(len, keys)]),
        }, {}

    def _find(self, key: str) -> tuple[int, int]:
        """(number of the shard, row in the table) of a pair. Raises ``KeyError``."""
        # names of shards may have slashes, too
        for slash in (i for i, letter in enumerate(key) if letter == "/"):
            if (number := self._numbers.get(key[:slash])) is not None:
                member = np.bytes_(member_name(key[slash + 1 :]).encode())
                start, end = map(int, self._table["starts"][number : number + 2])
                row = start + int(np.searchsorted(self._table["keys"][start:end], member))
                if row < end and self._table["keys"][row] == member:
                    return number, row
                break
        raise KeyError(key)


def check_labels(root: str | os.PathLike[str]) -> list[str]:
    """The shards of a store that are damaged, one line each.

    Raises:
        UserError: the store is not finished.
    """
    problems = []
    for shard in read_manifest(Path(root))["shards"]:
        try:
            check_shard(Path(root), shard)
        except DamagedShard as error:
            problems.append(str(error))
    return problems


def read_manifest(root: Path) -> dict[str, Any]:
    """The manifest of a finished store. Raises ``UserError``."""
    path = root / MANIFEST
    if not path.is_file():
        state = "labelling has not finished" if any(root.rglob("*.tar")) else "no labels"
        raise UserError(
            f"{state} in {root}; run: python -m benchmark labels predict --pairs … --out {root}"
        )
    with report_malformed(f"{path} is not readable", "make the labels again in another folder"):
        manifest = read_json(path)
        if manifest["version"] != VERSION or not manifest.keys() >= FIELDS:
            raise ValueError(f"not a manifest of format {VERSION}")
    return manifest
