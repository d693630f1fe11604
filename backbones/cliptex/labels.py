"""The pseudo-label store: one compressed file of hard labels for each shard of pairs, keyed by pair, never by position.

    labels/
      00000.labels        records, an index of their keys, a summary, a digest of it all
      00000.cost.json     what making them cost (not part of what they are)
      manifest.json       written last: identity of the experts, counts, failures named, errors, digests of the shards

A shard's file appears whole, by renaming, or not at all; its own digest tells damage. Reading keeps the indices of
few shards, 24 bytes a pair, so that memory does not grow with the number of pairs.
"""

from __future__ import annotations

import functools
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from backbones.cliptex import planes
from backbones.cliptex.shards import VERSION, DamagedShard, ShardReader, ShardWriter, encode, hash_key, open_shard
from backbones.errors import UserError
from backbones.files import content_key, write_json

__all__ = ["DamagedShard", "LabelStore", "LabelWriter", "check_labels", "encode", "store_key"]

MANIFEST = "manifest.json"


def store_key(identity: Mapping[str, Any], classes: Sequence[str] = ()) -> str:
    """What a store of this identity has as ``key`` in its manifest: 32 hex digits."""
    return content_key({"version": VERSION, "identity": dict(identity), "classes": list(classes)}, 32)


class LabelWriter:
    """Writes a store, shard by shard, in any order and from any number of processes; ``finish`` once at the end.

    Args:
        root: the store's folder.
        identity: what makes the labels what they are (experts, their weights, the pairs), JSON-able; a finished shard
            is kept by a resumed labelling only if it was written under the same identity.
        classes: names of the segmentation classes by index; empty without segmentation.
        ignore_index: of ``seg``; 255 for uint8 maps, 65535 for uint16.

    Raises:
        UserError: the folder holds labels of another identity.
    """

    def __init__(
        self,
        root: str | os.PathLike[str],
        identity: Mapping[str, Any],
        classes: Sequence[str] = (),
        ignore_index: int = 255,
    ) -> None:
        self.root = Path(root)
        self.identity, self.classes, self.ignore_index = dict(identity), list(classes), ignore_index
        self.key = store_key(self.identity, self.classes)
        manifest = self.root / MANIFEST
        if manifest.is_file() and _manifest(self.root).get("key") != self.key:
            raise UserError(
                f"{self.root} holds labels of other experts or pairs; choose another --out, or remove that folder"
            )

    def path(self, name: str) -> Path:
        """File of the labels of shard ``name``."""
        return _path(self.root, name)

    def finished(self, name: str) -> ShardReader | None:
        """The shard, if it is there, whole and of this identity; None if it is not there.

        Raises:
            DamagedShard: a file is there but is no such shard; write it again.
        """
        if not self.path(name).exists():
            return None
        reader = open_shard(self.path(name))
        if reader.summary["identity"] != self.key:
            raise DamagedShard(f"{reader.path} was made by other experts or from other pairs")
        return reader

    def shard(self, name: str) -> ShardWriter:
        """Begin (again) the shard ``name``."""
        return ShardWriter(self.path(name), name, self.key)

    def finish(self, names: Iterable[str], **extra: Any) -> dict[str, Any]:
        """Write and return the manifest over the shards ``names``, all finished; ``extra`` goes into it (costs …).

        Raises:
            DamagedShard: one of them is not there or not whole.
        """
        shards, failed, errors = [], [], dict[str, dict[str, float]]()
        totals = {"pairs_in": 0, "pairs_out": 0, "pixels": 0, "bytes": 0}
        by_plane = dict.fromkeys(planes.ENCODE, 0)
        for name in names:
            reader = self.finished(name)
            if reader is None:
                raise DamagedShard(f"{self.path(name)} is missing")
            summary, size = reader.summary, reader.path.stat().st_size
            shards.append({"name": name, "sha256": reader.sha256, "bytes": size, "pairs": len(reader)})
            failed += summary["failed"]
            totals["bytes"] += size
            for count in ("pairs_in", "pairs_out", "pixels"):
                totals[count] += summary[count]
            for plane, count in summary["plane_bytes"].items():
                by_plane[plane] += count
            for plane, figures in summary["errors"].items():
                total = errors.setdefault(plane, dict.fromkeys(figures, 0.0))
                for figure, value in figures.items():
                    total[figure] = max(total[figure], value) if figure == "max" else total[figure] + value
        for left in self.root.glob(".*.tmp"):  # of a process that was killed while it wrote; nobody writes shards now
            left.unlink(missing_ok=True)
        out = max(totals["pairs_out"], 1)
        manifest = {
            "version": VERSION,
            "key": self.key,
            "identity": self.identity,
            "classes": self.classes,
            "ignore_index": self.ignore_index,
            **totals,
            "bytes_per_image": round(totals["bytes"] / out, 1),
            "plane_bytes_per_image": {plane: round(count / out, 1) for plane, count in by_plane.items() if count},
            # means over images of each image's median, mean and 99th percentile, and the largest of all
            "errors": {
                plane: {figure: value if figure == "max" else value / out for figure, value in figures.items()}
                for plane, figures in errors.items()
            },
            "error_units": {"depth": "% of the image's range", "normal": "degrees", "confidence": "1/4 octave"},
            "failed": failed,
            "shards": shards,
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
        classes: names of the segmentation classes, by index.
        ignore_index: value of unlabelled pixels in ``seg``.

    Raises:
        UserError: there is no finished store, or a shard's file is missing or cut off.
    """

    def __init__(self, root: str | os.PathLike[str]) -> None:
        self.root = Path(root)
        self.manifest = _manifest(self.root)
        self.classes: Sequence[str] = self.manifest["classes"]
        self.ignore_index: int = self.manifest["ignore_index"]
        self.names = [shard["name"] for shard in self.manifest["shards"]]
        self.identity: str = content_key(
            [self.manifest["key"], [shard["sha256"] for shard in self.manifest["shards"]]], 32
        )
        self._known = set(self.names)
        self._where: tuple[np.ndarray, np.ndarray] | None = None
        for shard in self.manifest["shards"]:
            path = _path(self.root, shard["name"])
            if not path.is_file() or path.stat().st_size != shard["bytes"]:
                raise UserError(f"{path} is missing or cut off; run the same label command again to mend it")

    def __len__(self) -> int:
        return int(self.manifest["pairs_out"])

    def get(self, key: str) -> dict[str, np.ndarray]:
        """Labels of the pair ``key``, each at the resolution its expert labelled, those there:

        ``seg``: (H, W) uint8 or uint16, class index or ``ignore_index``;
        ``depth``: (H, W) float32, relative inverse depth in [0, 1] (1 is nearest), NaN where unknown;
        ``normal``: (3, H, W) float32 unit vectors (x right, y up, z towards the camera), zero where unknown;
        ``confidence``: (H, W) float32, κ of the normals' angular distribution.

        Raises:
            KeyError: the store has no labels for it (then ``manifest['failed']`` says why).
            UserError: the bytes on disk have changed.
        """
        shard, _, rest = key.rpartition("/")
        try:
            if shard in self._known and rest:  # pairs of tar shards are called SHARD/KEY
                return self.shard(shard).get(key)
            name = self._search(key)
            return self.shard(name).get(key)
        except DamagedShard as error:
            raise UserError(f"{error}; run the same label command again to mend it") from error

    def shard(self, name: str) -> ShardReader:
        """One shard, for reading it in order; the indices of the last 64 are kept."""
        path = _path(self.root, name)
        return _reader(path, path.stat().st_mtime_ns if path.exists() else 0)

    def __iter__(self) -> Iterator[tuple[str, dict[str, np.ndarray]]]:
        """(key, labels) of everything, one shard after another."""
        for name in self.names:
            yield from open_shard(_path(self.root, name), whole=False)

    def _search(self, key: str) -> str:
        """Shard of a key that does not say it (pairs of a table); 12 bytes a pair are kept for it."""
        if self._where is None:
            hashes = [self.shard(name).index["key"] for name in self.names]
            numbers = [np.full(len(found), place, np.int32) for place, found in enumerate(hashes)]
            joined = np.concatenate(hashes) if hashes else np.array([], np.uint64)
            order = np.argsort(joined)
            self._where = joined[order], (np.concatenate(numbers) if numbers else np.array([], np.int32))[order]
        hashes_, numbers_ = self._where
        place = int(np.searchsorted(hashes_, np.uint64(hash_key(key))))
        if place == len(hashes_) or int(hashes_[place]) != hash_key(key):
            raise KeyError(key)
        return self.names[int(numbers_[place])]


def check_labels(root: str | os.PathLike[str]) -> list[str]:
    """What is wrong with a store, one line each; empty when every byte is as it was written and all counts agree.

    Raises:
        UserError: there is no finished store.
    """
    manifest = _manifest(Path(root))
    wrong, out = [], 0
    for shard in manifest["shards"]:
        path = _path(Path(root), shard["name"])
        try:
            reader = open_shard(path)
        except DamagedShard as error:
            wrong.append(str(error))
            continue
        if reader.sha256 != shard["sha256"]:
            wrong.append(f"{path} is not the file that the manifest names")
        if len(reader) != shard["pairs"]:
            wrong.append(f"{path} has {len(reader)} pairs, the manifest says {shard['pairs']}")
        out += len(reader)
    if not wrong and not (out == manifest["pairs_out"] == manifest["pairs_in"] - len(manifest["failed"])):
        wrong.append(f"counts do not agree: {manifest['pairs_in']} in, {out} out, {len(manifest['failed'])} failed")
    return wrong


def _manifest(root: Path) -> dict[str, Any]:
    try:
        manifest = json.loads((root / MANIFEST).read_text(encoding="utf-8"))
    except FileNotFoundError:
        there = "labelling has not finished" if any(root.rglob("*.labels")) else "no labels"
        raise UserError(f"{there} in {root}; run: python -m benchmark label --pairs … --out {root}") from None
    except (OSError, ValueError) as error:
        raise UserError(f"{root / MANIFEST} is not readable ({error}); remove it and run label again") from error
    if manifest.get("version") != VERSION:
        raise UserError(
            f"{root} holds labels of format {manifest.get('version')}, this is {VERSION}; remove it and label again"
        )
    return manifest


def _path(root: Path, name: str) -> Path:
    return root / f"{name}.labels"


@functools.lru_cache(maxsize=64)
def _reader(path: Path, mtime_ns: int) -> ShardReader:
    return open_shard(path, whole=False)
