"""A label store: hard labels of image-caption pairs by key, a tar for each shard of pairs; and
several stores as one.

    labels/
      00012.tar        000120034.seg.png, 000120034.depth.png, 000120034.normal.webp …
      00012.tar.json   identity and sha256 of that tar, counts, failures, cost
      manifest.json    written last: identity, counts, failures, digests of the shards

A shard is a tar in the webdataset convention with a summary beside it. Both are written atomically,
the summary last: a shard without one does not count. The positions of the labels are a table that
all processes of a machine share; see ``cliptex_common.tables``.
"""

from __future__ import annotations

import contextlib
import functools
import os
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from webdataset import TarWriter

from backbones.cliptex.tasks import find_label_map, ordered
from cliptex_common.errors import UserError, report_malformed
from cliptex_common.files import atomic_write, content_key, read_json, sha256_file, write_json
from cliptex_common.images import IMAGE_ERRORS
from cliptex_common.tables import Contents, Table, cached_table, list_members, read_member


class Labels(Protocol):
    """Label maps of full images at any resolution, by pair key (see ``LabelStore``).

    Attributes:
        identity: digest of the labels.
        classes: task → class names, for tasks that have classes.
    """

    identity: str
    classes: Mapping[str, Sequence[str]]

    def get(self, key: str, tasks: Collection[str] | None = None) -> Mapping[str, np.ndarray]:
        """The pair's labels for those of ``tasks`` (None: all) that exist, as the ``LabelMap`` of
        each task describes them. Raises ``KeyError`` if the pair has none."""

    def tasks_of(self, key: str) -> tuple[str, ...]:
        """The tasks that the pair has labels for."""


class JoinedLabels:
    """Several label stores as one; earlier stores have priority, pair by pair and task by task.

    Raises:
        UserError: two stores name the classes of a task differently.
    """

    def __init__(self, stores: Sequence[Labels]) -> None:
        self.classes: dict[str, Sequence[str]] = {}
        for store in stores:
            for task, names in store.classes.items():
                first = self.classes.setdefault(task, list(names))
                if first != list(names):
                    raise UserError(
                        f"label stores disagree on their classes of {task} ({', '.join(first[:3])}"
                        f" … and {', '.join(names[:3])} …); label both with one class list"
                    )
        self.stores = list(stores)
        self.identity = content_key([store.identity for store in stores], 32)

    def get(self, key: str, tasks: Collection[str] | None = None) -> dict[str, np.ndarray]:
        """All labels that any store has for ``key``. Raises ``KeyError`` when none has any."""
        missing = set(self.tasks_of(key))
        if not missing:
            raise KeyError(key)
        if tasks is not None:
            missing &= set(tasks)
        joined: dict[str, np.ndarray] = {}
        for store in self.stores:
            if own := missing & set(store.tasks_of(key)):
                joined |= store.get(key, own)
                missing -= own
        return joined

    def tasks_of(self, key: str) -> tuple[str, ...]:
        """Tasks that any store has labels of ``key`` for."""
        return tuple(dict.fromkeys(task for store in self.stores for task in store.tasks_of(key)))


MANIFEST = "manifest.json"
FIELDS = {"key", "tasks", "classes", "shards", "failed", "pairs_in", "pairs_out"}
# Short side that labels are kept at. A ViT-B/16 at 224 pixels learns from four labels a patch, 56,
# of at least nine tenths of the image by area: that is 59 of the whole.
LABEL_SIDE = 60
Classes = Mapping[str, Sequence[str]]


def store_key(identity: Mapping[str, Any], classes: Classes) -> str:
    """``key`` in the manifest of a store of this identity: 32 hex digits."""
    named = {task: list(names) for task, names in classes.items()}
    return content_key(
        {"version": FORMAT_VERSION, "identity": dict(identity), "classes": named}, 32
    )


def encode(labels: Mapping[str, np.ndarray]) -> dict[str, bytes]:
    """An image's labels, by task, as files by suffix (``seg.png``).

    The costliest part of writing; its codecs release the interpreter's lock.
    """
    return {suffix_of(name): find_label_map(name).encode(label) for name, label in labels.items()}


def suffix_of(task: str) -> str:
    """Suffix of a task's files."""
    return f"{task}.{find_label_map(task).suffix}"


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
        """Begin (again) the shard ``name``; its summary has the store's key as ``identity``."""
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
            "version": FORMAT_VERSION,
            "key": self.key,
            "identity": self.identity,
            "tasks": {
                task: {"suffix": suffix_of(task), "lost": find_label_map(task).quantisation}
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
                labels[name] = find_label_map(name).decode(
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
        inputs = [FORMAT_VERSION, str(self.root.resolve()), self.identity, self._mtimes]
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
        if manifest["version"] != FORMAT_VERSION or not manifest.keys() >= FIELDS:
            raise ValueError(f"not a manifest of format {FORMAT_VERSION}")
    return manifest


FORMAT_VERSION = 3
SUMMARY = {"identity", "sha256", "bytes", "pairs", "failed"}


class DamagedShard(Exception):
    """A shard file is missing, cut off or has changed; the message says which."""


def member_name(name: str) -> str:
    """The name of a pair ``SHARD/NAME`` in the tar of its labels: as in its own tar.

    Pairs of a table are paths, whose dots would end a key.
    """
    name = name.replace("%", "%25").replace(".", "%2E")
    return f"%2F{name[1:]}" if name.startswith("/") else name


class ShardWriter:
    """A shard being written, see ``writing_shard``; ``summary`` may get further content."""

    def __init__(self, name: str, tar: TarWriter) -> None:
        self.summary: dict[str, Any] = {"pairs": 0, "failed": []}
        self._name, self._tar = name, tar

    def add(self, key: str, encoded: Mapping[str, bytes]) -> None:
        """Append one pair's labels, as ``encode`` gives them."""
        name = member_name(key.removeprefix(f"{self._name}/"))
        self.summary["pairs"] += 1
        self._tar.write({"__key__": name, **encoded})

    def fail(self, key: str, reason: str) -> None:
        """Record a pair that has no labels, and why."""
        self.summary["failed"].append([key, reason])


@contextlib.contextmanager
def writing_shard(root: Path, name: str, identity: str) -> Iterator[ShardWriter]:
    """A shard to write. Its files appear when the block ends normally; an error leaves nothing."""
    path = tar_path(root, name)
    for temporary in path.parent.glob(f".{path.name}.*.tmp"):  # of a labelling that was killed
        temporary.unlink(missing_ok=True)
    with atomic_write(path) as temporary:
        with temporary.open("wb") as file:
            tar = TarWriter(file, user="", group="", encoder=False, mtime=0, format="PAX_FORMAT")
            writer = ShardWriter(name, tar)
            try:
                yield writer
            except BaseException:
                with contextlib.suppress(Exception):  # the file is discarded
                    tar.close()
                raise
            tar.close()
        summary = {
            "version": FORMAT_VERSION,
            "identity": identity,
            "sha256": sha256_file(temporary),
            "bytes": temporary.stat().st_size,
            **writer.summary,
        }
        summary_path(path).unlink(missing_ok=True)  # it describes the tar that is replaced now
    write_json(summary_path(path), summary)


def tar_path(root: Path, name: str) -> Path:
    return root / f"{name}.tar"


def summary_path(tar: Path) -> Path:
    return tar.with_name(f"{tar.name}.json")


def read_summary(root: Path, name: str) -> dict[str, Any] | None:
    """A shard's summary; None when the shard is not finished. The tar is not read.

    Raises:
        DamagedShard: the summary is malformed.
    """
    path = summary_path(tar_path(root, name))
    if not path.is_file():
        return None
    try:
        summary = read_json(path)
    except ValueError as error:
        raise DamagedShard(f"{path} is not readable ({error})") from error
    if not isinstance(summary, dict) or not summary.keys() >= SUMMARY:
        raise DamagedShard(f"{path} is not the summary of a shard")
    return {**summary, "name": name}


def check_shard(root: Path, shard: Mapping[str, Any], *, hashed: bool = True) -> None:
    """Compare a shard's tar with its summary: every byte, or its size alone.

    Raises:
        DamagedShard: they differ.
    """
    path = tar_path(root, shard["name"])
    if not path.is_file():
        raise DamagedShard(f"{path} is missing")
    if path.stat().st_size != shard["bytes"]:
        raise DamagedShard(f"{path} is cut off")
    if hashed and sha256_file(path) != shard["sha256"]:
        raise DamagedShard(f"{path} has changed on disk")
