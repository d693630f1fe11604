"""Image-caption pairs: webdataset tar shards or a CSV/TSV table, opened once and then read by index.

A shard is indexed (names, offsets, sizes), not unpacked, so that any pair can be read directly: an epoch's order is a
function of (seed, epoch) alone, resuming costs nothing, and ranks and workers share an epoch without loss.
"""

from __future__ import annotations

import glob
import hashlib
import json
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from webdataset.shardlists import expand_urls

from backbones.cliptex.data.source import HASHED_WHOLE_BYTES, BadPair, Pair, PairSource, Shard, Tally
from backbones.cliptex.data.table import TablePairs
from backbones.cliptex.data.tar_index import TarIndex, index_tar
from backbones.cliptex.protocols import Progress, Silent
from backbones.errors import UserError
from backbones.files import content_key

IMAGES, CAPTIONS = ("jpg", "jpeg", "png", "webp"), ("txt", "json")
TXT = len(IMAGES)  # the number of that suffix in an index
IMAGE, CAPTION = 0, 1  # what an index is reduced to


def open_pairs(source: str | os.PathLike[str], progress: Progress | None = None) -> PairSource:
    """Open pairs.

    Args:
        source: tar shards as a brace pattern (``cc3m/{00000..00331}.tar``), a glob (``cc3m/*.tar``) or their folder,
            each sample ``KEY.jpg`` (or png, webp) with ``KEY.txt``, or ``KEY.json`` with a ``caption``; or one ``.csv``
            or ``.tsv`` file with a header and the columns ``filepath`` and ``caption`` (paths relative to the file).
        progress: shown while shards are indexed for the first time (about a second for 10,000 pairs, then cached).

    Raises:
        UserError: nothing is there, a shard or table is malformed, or over 1 % of the pairs lack image or caption.
    """
    text = os.fspath(source)
    if "\0" in text:
        raise UserError(f"--pairs {text!r} has a NUL character in it; no file has such a name")
    if text.endswith((".csv", ".tsv")):
        return TablePairs(Path(text))
    if Path(text).is_dir():
        text = f"{glob.escape(text)}/*.tar"
    paths: list[Path] = []
    try:
        patterns = expand_urls(text)
    except ValueError as error:  # braceexpand's UnbalancedBracesError
        raise UserError(
            f"--pairs {text!r} is no pattern of shards ({error}); write it as 'cc3m/{{00000..00331}}.tar'"
        ) from None
    for pattern in patterns:
        found = sorted(glob.glob(pattern)) if glob.has_magic(pattern) else [pattern]  # noqa: PTH207 (absolute patterns)
        if not found:
            raise UserError(f"no pairs match {pattern}; give tar shards, their folder, or a .csv or .tsv file")
        paths += map(Path, found)
    if missing := [path for path in paths if not path.is_file()]:
        raise UserError(
            f"{len(missing)} of {len(paths)} shards are missing, first {missing[0]}; check --pairs {text!r}"
        )
    return TarPairs(text, paths, progress or Silent())


class TarPairs(PairSource):
    """Pairs in webdataset tar shards. A key is ``SHARD/KEY``, for example ``00012/000120034``."""

    def __init__(self, name: str, paths: Sequence[Path], progress: Progress) -> None:
        self.name = name
        shards, skipped = [], []
        indices: list[TarIndex] = []
        self._plain = []
        progress.start("indexing shards", len(paths))
        start = 0
        for shard_name, path in zip(_shard_names(paths), paths, strict=True):
            index, plain, incomplete = _complete(index_tar(path, (*IMAGES, *CAPTIONS)))
            shards.append(Shard(shard_name, path, start, len(index)))
            indices.append(index)
            self._plain.append(plain)
            skipped += [(f"{shard_name}/{key}", "no image or no caption") for key in incomplete]
            start += len(index)
            progress.advance()
        self.shards, self.skipped, self._indices = tuple(shards), tuple(skipped), indices
        _check_skipped(self)
        self.fingerprint = content_key([_fingerprint(indices), [shard.name for shard in shards]], 32)

    def key(self, index: int) -> str:
        shard, entry, row = self._locate(index)
        return f"{shard.name}/{entry.keys[row].decode()}"

    def __getitem__(self, index: int) -> Pair:
        place = self.place_of(index)
        shard, entry, row = self._locate(index)
        try:
            image, text = entry.read(row, IMAGE), entry.read(row, CAPTION)
        except OSError as error:
            raise BadPair(f"cannot read {shard.path} ({error.strerror})") from error
        try:
            caption = text.decode("utf-8") if self._plain[place][row] else json.loads(text).get("caption")
        except (ValueError, AttributeError) as error:
            raise BadPair(f"caption is not readable ({error})") from error
        if not isinstance(caption, str):
            raise BadPair("json without a caption")
        return Pair(f"{shard.name}/{entry.keys[row].decode()}", shard.name, caption.strip(), image)

    def _locate(self, index: int) -> tuple[Shard, TarIndex, int]:
        place = self.place_of(index)
        return self.shards[place], self._indices[place], index - self.shards[place].start


def _complete(index: TarIndex) -> tuple[TarIndex, np.ndarray, list[str]]:
    """The index reduced to samples with ``IMAGE`` and ``CAPTION``; which captions are plain text; keys of the other samples."""
    there = index.places[..., 1] >= 0
    whole = there[:, :TXT].any(1) & there[:, TXT:].any(1)
    rows, plain = np.flatnonzero(whole), there[whole, TXT]
    columns = np.stack([there[whole, :TXT].argmax(1), np.where(plain, TXT, TXT + 1)], 1)
    others = [key.decode() for key in index.keys[~whole]]
    return TarIndex(index.path, index.mtime_ns, index.keys[whole], index.places[rows[:, None], columns]), plain, others


def _shard_names(paths: Sequence[Path]) -> list[str]:
    """File stems, or ``folder/stem`` where stems repeat."""
    names = [path.stem for path in paths]
    if len(set(names)) < len(names):
        names = [f"{path.parent.name}/{path.stem}" for path in paths]
    if len(set(names)) < len(names):
        repeated = next(name for name in names if names.count(name) > 1)
        raise UserError(f"two shards are called {repeated}; pairs are known by shard and key, so rename one")
    return names


def _check_skipped(source: PairSource) -> None:
    tally = Tally(f"pairs of {source.name}")
    for key, reason in source.skipped:
        tally.add(key, reason)
    tally.check(len(source) + len(source.skipped))
    if not len(source):
        raise UserError(f"no pairs in {source.name}: a sample is KEY.jpg with KEY.txt (or KEY.json with a caption)")


def _fingerprint(indices: Sequence[TarIndex]) -> str:
    digest = hashlib.sha256()
    total = sum(index.path.stat().st_size for index in indices)
    for index in indices:
        digest.update(index.keys.tobytes())
        digest.update(index.places.tobytes())
        if total <= HASHED_WHOLE_BYTES:
            digest.update(index.path.read_bytes())
    return digest.hexdigest()
