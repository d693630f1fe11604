"""Image-caption pairs: webdataset tar shards or a CSV/TSV table, opened once and then read by
index.

A shard is indexed (names, offsets, sizes), not unpacked, so that any pair can be read directly: an
epoch's order is a function of (seed, epoch) alone, resuming costs nothing, and ranks and workers
share an epoch without loss.
"""

from __future__ import annotations

import glob
import hashlib
import json
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import numpy as np
from webdataset.shardlists import expand_urls

from backbones.cliptex.data.remote import fetch_shards, is_remote
from backbones.cliptex.data.source import (
    FULL_HASH_BYTES,
    BadPair,
    FailureCounter,
    Pair,
    PairSource,
    Shard,
)
from backbones.cliptex.data.table import TablePairs
from cliptex_common.errors import UserError, first_line
from cliptex_common.files import content_key
from cliptex_common.progress import Progress, Silent
from cliptex_common.secrets import hide_secrets
from cliptex_common.tables import Contents, cached_table
from cliptex_common.tar_index import read_member, tar_identity, walk_tar

IMAGES, CAPTIONS = ("jpg", "jpeg", "png", "webp"), ("txt", "json")
MEMBERS = (("image", np.int64, 2), ("caption", np.int64, 2))  # offset and size
VERSION = 2  # of the cached tables
PARALLEL_BYTES = 1 << 26  # of shards that several processes index
MAX_INDEXERS = 16


def open_pairs(
    source: str | os.PathLike[str], progress: Progress | None = None, *, keep: bool = True
) -> PairSource:
    """Open pairs.

    Args:
        source: tar shards as a brace pattern (``cc3m/{00000..00331}.tar``), a glob (``cc3m/*.tar``)
            or their folder, each sample ``KEY.jpg`` (or png, webp) with ``KEY.txt``, or
            ``KEY.json`` with a ``caption``; or one ``.csv`` or ``.tsv`` file with a header and the
            columns ``filepath`` and ``caption`` (paths relative to the file). Shards may be on a
            server, ``https://HOST/cc3m/{00000..00331}.tar`` or ``s3://…``; they are fetched once
            (see ``remote``).
        progress: of fetching, and of indexing (about a second for 10,000 pairs, then cached).
        keep: cache the index.

    Raises:
        UserError: nothing is found, a shard or table is malformed, over 1 % of the pairs lack image
            or caption, or a shard cannot be fetched.
    """
    text, progress = os.fspath(source), progress or Silent()
    if text.endswith((".csv", ".tsv")):
        if is_remote(text):
            raise UserError(
                f"a table is read on this machine, with its images: copy {hide_secrets(text)}, or"
                " give tar shards"
            )
        return TablePairs(Path(text))
    paths = _list_shards(text)
    fetched = iter(fetch_shards([path for path in paths if isinstance(path, str)], progress))
    tars = [path if isinstance(path, Path) else next(fetched) for path in paths]
    return TarPairs(hide_secrets(text), tars, progress, keep)


def _list_shards(text: str) -> list[Path | str]:
    """Paths and URLs of the shards that ``text`` names, in order."""
    is_folder = os.path.isdir(text)  # noqa: PTH112 (a pattern may be longer than a file name)
    try:
        patterns = [f"{glob.escape(text)}/*.tar"] if is_folder else expand_urls(text)
    except (ValueError, AssertionError) as error:  # unbalanced braces
        raise UserError(
            f"--pairs {hide_secrets(text)} is not a pattern of shards ({first_line(error)}); write"
            " it as 'cc3m/{00000..00331}.tar'"
        ) from None
    shards: list[Path | str] = []
    for pattern in patterns:
        if is_remote(pattern):
            if "*" in pattern:
                raise UserError(
                    "name shards on a server by braces, {00000..00331}.tar, not by '*':"
                    f" {hide_secrets(pattern)}"
                )
            shards.append(pattern)
            continue
        matches = sorted(glob.glob(pattern)) if glob.has_magic(pattern) else [pattern]  # noqa: PTH207 (absolute patterns)
        if not matches:
            raise UserError(
                f"no pairs match {pattern}; give tar shards, their folder, or a .csv or .tsv file"
            )
        shards += map(Path, matches)
    missing = [path for path in shards if isinstance(path, Path) and not path.is_file()]
    if missing:
        raise UserError(
            f"{len(missing)} of {len(shards)} shards are missing, first {missing[0]}; check --pairs"
            f" {hide_secrets(text)}"
        )
    return shards


class TarPairs(PairSource):
    """Pairs in webdataset tar shards. A key is ``SHARD/KEY``, for example ``00012/000120034``.

    Their offsets are a table that all processes of a machine share; see ``tables``.
    """

    def __init__(
        self, name: str, paths: Sequence[Path], progress: Progress, keep: bool = True
    ) -> None:
        self.name = name
        names = _shard_names(paths)
        identities = [tar_identity(path) for path in paths]
        self._table = cached_table(
            "pair-index",
            [VERSION, identities, names],
            lambda: _index(paths, names, progress),
            lambda: progress.start("another process indexes these shards", 1),
            keep=keep,
        )
        self.skipped = tuple((key, reason) for key, reason in self._table.metadata["skipped"])
        self._versions = [version for _, _, version in identities]
        starts = np.cumsum([0, *self._table.metadata["counts"]])
        self.shards = tuple(
            Shard(name, path, int(start), int(end - start))
            for name, path, start, end in zip(names, paths, starts[:-1], starts[1:], strict=True)
        )
        self.fingerprint = self._table.metadata["fingerprint"]
        failures = FailureCounter(f"pairs of {name}")
        failures.bad.update(self.skipped)
        failures.check(len(self) + len(self.skipped))
        if not len(self):
            raise UserError(
                f"no pairs in {name}: a sample is KEY.jpg with KEY.txt (or KEY.json with a caption)"
            )

    def key(self, index: int) -> str:
        shard = self.shards[self.shard_of(index)]
        return f"{shard.name}/{self._table['rows'][index]['key'].decode()}"

    def __getitem__(self, index: int) -> Pair:
        number, row = self.shard_of(index), self._table["rows"][index]
        shard, version = self.shards[number], self._versions[number]
        try:
            image = read_member(shard.path, version, *row["image"])
            text = read_member(shard.path, version, *row["caption"])
        except OSError as error:
            raise BadPair(f"cannot read {shard.path} ({error.strerror})") from error
        try:
            caption = text.decode("utf-8") if row["is_txt"] else json.loads(text)["caption"].strip()
        except (ValueError, LookupError, TypeError, AttributeError) as error:
            raise BadPair(f"caption is not readable ({first_line(error)})") from error
        return Pair(self.key(index), caption.strip(), image)


def _index(paths: Sequence[Path], names: Sequence[str], progress: Progress) -> Contents:
    """A row for each pair: its key in the shard, offset and size of image and caption, and whether
    the caption is plain text. Metadata: ``counts`` by shard, ``skipped`` samples, ``fingerprint``.
    """
    progress.start("indexing shards", len(paths))
    digest, skipped, tables = hashlib.sha256(), [], []
    size = sum(path.stat().st_size for path in paths)
    for path, name, (table, incomplete) in zip(paths, names, _index_all(paths, size), strict=True):
        skipped += [(f"{name}/{key}", "no image or no caption") for key in incomplete]
        digest.update(table["key"].tobytes())
        digest.update(np.stack([table["image"], table["caption"]], 1).tobytes())
        if size <= FULL_HASH_BYTES:
            digest.update(path.read_bytes())
        tables.append(table)
        progress.advance()
    metadata = {
        "counts": [len(table) for table in tables],
        "skipped": skipped,
        "fingerprint": content_key([digest.hexdigest(), names], 32),
    }
    return {"rows": np.concatenate(tables)}, metadata


def _index_all(paths: Sequence[Path], size: int) -> Iterator[tuple[np.ndarray, list[str]]]:
    """``_index_shard`` of each, in order; by several processes if there are many bytes."""
    # the cores of this process's allocation; macOS has no such call, and forking is not safe there
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 1
    workers = min(cores, len(paths), MAX_INDEXERS)
    if size < PARALLEL_BYTES or workers < 2:
        yield from map(_index_shard, paths)
        return
    # forked, as loading processes are: others would import all that the main program imports
    with ProcessPoolExecutor(workers, mp_context=get_context("fork")) as pool:
        yield from pool.map(_index_shard, paths)


def _index_shard(path: Path) -> tuple[np.ndarray, list[str]]:
    """A shard's rows, and the keys that lack image or caption."""
    rows, incomplete = [], []
    for key, members in walk_tar(path).items():
        image = next((members[suffix] for suffix in IMAGES if suffix in members), None)
        caption = next((members[suffix] for suffix in CAPTIONS if suffix in members), None)
        if image and caption:
            rows.append((key.encode(), image, caption, "txt" in members))
        else:
            incomplete.append(key)
    length = max((len(key) for key, *_ in rows), default=1)
    return np.array(rows, [("key", f"S{length}"), *MEMBERS, ("is_txt", bool)]), incomplete


def _shard_names(paths: Sequence[Path]) -> list[str]:
    """File stems, or ``folder/stem`` where stems repeat."""
    names = [path.stem for path in paths]
    if len(set(names)) < len(names):
        names = [f"{path.parent.name}/{path.stem}" for path in paths]
    if len(set(names)) < len(names):
        name, _ = Counter(names).most_common(1)[0]
        raise UserError(
            f"two shards are called {name}; pairs are known by shard and key, so rename one"
        )
    return names
