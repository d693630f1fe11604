"""A label store: hard labels of image-caption pairs, a tar for each shard of pairs, found by pair, never by position.

    labels/
      00000.tar, 00000.tar.json …   see ``shards``
      manifest.json                 written last: who made the labels, counts, failures named, digests of the shards

Reading keeps the indices of few shards, so that memory does not grow with the number of pairs.
"""

from __future__ import annotations

import json
import os
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from backbones.cliptex.data.tar_index import TarIndex
from backbones.cliptex.labels.shards import (
    VERSION,
    DamagedShard,
    ShardWriter,
    check_shard,
    member_name,
    open_shard,
    read_summary,
    tar_path,
)
from backbones.cliptex.tasks import find_task, ordered
from backbones.errors import UserError
from backbones.files import content_key, write_json

MANIFEST = "manifest.json"
# Short side that labels are kept at. A ViT-B/16 at 224 pixels learns from four labels a patch, 56, of at least nine tenths of
# the image by area: that is 59 of the whole.
LABEL_SIDE = 60
Classes = Mapping[str, Sequence[str]]


def store_key(identity: Mapping[str, Any], classes: Classes) -> str:
    """What a store of this identity has as ``key`` in its manifest: 32 hex digits."""
    named = {task: list(names) for task, names in classes.items()}
    return content_key({"version": VERSION, "identity": dict(identity), "classes": named}, 32)


def encode(labels: Mapping[str, np.ndarray]) -> dict[str, bytes]:
    """An image's labels, by task, as files by suffix (``seg.png``).

    Pure and the costliest part of writing: call it from threads, its codecs do not hold the interpreter's lock.
    """
    return {suffix_of(name): find_task(name).encode(label) for name, label in labels.items()}


def suffix_of(task: str) -> str:
    """Of a task's files."""
    return f"{task}.{find_task(task).suffix}"


class LabelWriter:
    """Writes a store, shard by shard, in any order and from any number of processes; ``finish`` once at the end.

    Args:
        root: the store's folder.
        identity: what makes the labels what they are (experts, their weights, the pairs), JSON-able; a finished shard
            is kept by a resumed labelling only if it was written under the same identity.
        classes: task → names of its classes by index.
        tasks: what is labelled.

    Raises:
        UserError: the folder holds labels of another identity or of an older version.
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
        if self.root.exists() and not self.root.is_dir():
            raise UserError(f"{self.root} is no folder; --out names the folder of the label store")
        _refuse_older(self.root)
        if (self.root / MANIFEST).is_file() and read_manifest(self.root)["key"] != self.key:
            raise UserError(
                f"{self.root} holds labels of other experts or pairs; choose another --out, or remove that folder"
            )

    def finished(self, name: str) -> dict[str, Any] | None:
        """What is said of the shard, if it is there, whole and of this identity; None if it is not there.

        Raises:
            DamagedShard: a file is there but is no such shard; write it again.
        """
        summary = read_summary(self.root, name)
        if summary is None:
            return None
        if summary["identity"] != self.key:
            raise DamagedShard(f"{tar_path(self.root, name)} was made by other experts or from other pairs")
        check_shard(self.root, summary)
        return summary

    def shard(self, name: str) -> ShardWriter:
        """Begin (again) the shard ``name``."""
        return ShardWriter(self.root, name, self.key)

    def finish(self, shards: Sequence[Mapping[str, Any]], **extra: Any) -> dict[str, Any]:
        """Write and return the manifest over all shards, as ``finished`` gives them; ``extra`` goes into it (costs …)."""
        for left in self.root.glob(".*.tmp"):  # of a process that was killed while it wrote; nobody writes shards now
            left.unlink(missing_ok=True)
        out, size = sum(shard["pairs"] for shard in shards), sum(shard["bytes"] for shard in shards)
        failed = [pair for shard in shards for pair in shard["failed"]]
        each = {task: sum(shard["task_bytes"].get(task, 0) for shard in shards) for task in self.tasks}
        manifest = {
            "version": VERSION,
            "key": self.key,
            "identity": self.identity,
            "tasks": {task: {"suffix": suffix_of(task), "lost": find_task(task).quantisation} for task in self.tasks},
            "classes": self.classes,
            "pairs_in": out + len(failed),
            "pairs_out": out,
            "bytes": size,
            "bytes_per_image": round(size / max(out, 1), 1),
            "task_bytes_per_image": {task: round(count / max(out, 1), 1) for task, count in each.items()},
            "failed": failed,
            "shards": [{name: shard[name] for name in ("name", "sha256", "bytes", "pairs")} for shard in shards],
            **extra,
        }
        write_json(self.root / MANIFEST, manifest)
        return manifest


class LabelStore:
    """A finished store, read by key. Cheap to pickle and to share with worker processes.

    Attributes:
        root: its folder.
        manifest: as ``LabelWriter.finish`` wrote it.
        identity: digest of what the labels are (experts, pairs and every shard's bytes).
        tasks: what is labelled; classes: task → names of its classes, by index.

    Raises:
        UserError: there is no finished store, or a shard's file is missing or cut off.
    """

    def __init__(self, root: str | os.PathLike[str]) -> None:
        self.root = Path(root)
        self.manifest = read_manifest(self.root)
        self.tasks: tuple[str, ...] = tuple(self.manifest["tasks"])
        self.classes: Classes = self.manifest["classes"]
        self._suffixes = tuple(each["suffix"] for each in self.manifest["tasks"].values())
        shards = self.manifest["shards"]
        self.names = [shard["name"] for shard in shards]
        self.identity: str = content_key([self.manifest["key"], [shard["sha256"] for shard in shards]], 32)
        self._known = set(self.names)
        for shard in shards:
            path = tar_path(self.root, shard["name"])
            if not path.is_file() or path.stat().st_size != shard["bytes"]:
                raise UserError(f"{path} is missing or cut off; run the same label command again to mend it")

    def __len__(self) -> int:
        return int(self.manifest["pairs_out"])

    def get(self, key: str, tasks: Collection[str] | None = None) -> dict[str, np.ndarray]:
        """Labels of the pair ``key``, those there, as each task decodes them (``seg``: (H, W) class numbers; ``depth``: (H, W)
        float32 in [0, 1], 1 is nearest, NaN unknown; ``normal``: (3, H, W) float32, zero unknown).

        Args:
            tasks: only these; None for all.

        Raises:
            KeyError: the store has no labels for it (then ``manifest['failed']`` may say why).
            UserError: the bytes on disk have changed.
        """
        index, row = self._find(key)
        labels = {}
        for column, name in enumerate(self.tasks):
            if index.places[row, column, 1] < 0 or (tasks is not None and name not in tasks):
                continue
            try:
                labels[name] = find_task(name).decode(index.read(row, column))
            except (OSError, ValueError, SyntaxError) as error:  # PIL says all three
                raise UserError(
                    f"{name} of {key} in {index.path} is damaged ({error}); run the same label command again to mend it"
                ) from error
        return labels

    def tasks_of(self, key: str) -> tuple[str, ...]:
        """Which labels there are of the pair ``key``; nothing is decoded."""
        try:
            index, row = self._find(key)
        except KeyError:
            return ()
        return tuple(name for name, there in zip(self.tasks, index.places[row, :, 1] >= 0, strict=True) if there)

    def shard(self, name: str) -> TarIndex:
        """One shard's index."""
        return open_shard(tar_path(self.root, name), self._suffixes)

    def _find(self, key: str) -> tuple[TarIndex, int]:
        for slash in (place for place, letter in enumerate(key) if letter == "/"):  # names of shards may have one too
            if key[:slash] in self._known:
                index = self.shard(key[:slash])
                return index, index.row(member_name(key[slash + 1 :]))
        raise KeyError(key)


def check_labels(root: str | os.PathLike[str]) -> list[str]:
    """What is wrong with a store, one line each; empty when every byte is as it was written and all counts agree.

    Raises:
        UserError: there is no finished store.
    """
    manifest = read_manifest(Path(root))
    wrong = []
    for shard in manifest["shards"]:
        try:
            check_shard(Path(root), shard)
        except DamagedShard as error:
            wrong.append(str(error))
    out = sum(shard["pairs"] for shard in manifest["shards"])
    if not wrong and not (out == manifest["pairs_out"] == manifest["pairs_in"] - len(manifest["failed"])):
        wrong.append(f"counts do not agree: {manifest['pairs_in']} in, {out} out, {len(manifest['failed'])} failed")
    return wrong


def read_manifest(root: Path) -> dict[str, Any]:
    """The manifest of a finished store. Raises ``UserError``."""
    path = root / MANIFEST
    _refuse_older(root)
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
        if manifest["version"] == VERSION:
            for shard in manifest["shards"]:
                shard["name"], shard["sha256"], shard["bytes"], shard["pairs"]
            manifest["key"] + "", manifest["tasks"].values(), manifest["classes"].items(), len(manifest["failed"])
    except FileNotFoundError:
        there = "labelling has not finished" if any(root.rglob("*.tar")) else "no labels"
        raise UserError(f"{there} in {root}; run: python -m benchmark label --pairs … --out {root}") from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        reason = getattr(error, "strerror", None) or repr(error)
        raise UserError(f"{path} is not readable ({reason}); remove it and run label again") from error
    if manifest["version"] != VERSION:
        raise UserError(
            f"{root} holds labels of format {manifest['version']}, this is {VERSION}; label again elsewhere"
        )
    return manifest


def _refuse_older(root: Path) -> None:
    if root.is_dir() and next(root.rglob("*.labels"), None):
        raise UserError(f"{root} holds labels of an older format (*.labels); remove it and label again")
