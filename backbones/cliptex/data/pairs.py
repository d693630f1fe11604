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
import math
import os
import re
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from webdataset.shardlists import expand_urls

from backbones.cliptex.data.remote import AT_ONCE, RemoteFile, find_remote, is_remote, shown
from backbones.cliptex.data.source import (
    HASHED_WHOLE_BYTES,
    BadPair,
    Pair,
    PairSource,
    Shard,
    Tally,
)
from backbones.cliptex.data.table import TablePairs
from backbones.cliptex.data.tables import Made, kept_table
from backbones.cliptex.data.tar_index import TarIndex, index_tar, read_member, tar_identity
from backbones.cliptex.protocols import Progress, Silent
from common.errors import UserError, first_line
from common.files import content_key

IMAGES, CAPTIONS = ("jpg", "jpeg", "png", "webp"), ("txt", "json")
TXT = len(IMAGES)  # the number of that suffix in an index
VERSION = 1  # of the tables of pairs
MOST_SHARDS = 1_000_000  # that a pattern may name
DEEPEST = 100  # braces within braces
_RANGE = re.compile(r"(?:(-?\d+)\.\.(-?\d+)|([A-Za-z])\.\.([A-Za-z]))(?:\.\.-?(\d+))?")


def open_pairs(
    source: str | os.PathLike[str], progress: Progress | None = None, *, keep: bool = True
) -> PairSource:
    """Open pairs.

    Args:
        source: tar shards as a brace pattern (``cc3m/{00000..00331}.tar``), a glob (``cc3m/*.tar``)
            or their folder, each sample ``KEY.jpg`` (or png, webp) with ``KEY.txt``, or
            ``KEY.json`` with a ``caption``; or one ``.csv`` or ``.tsv`` file with a header and the
            columns ``filepath`` and ``caption`` (paths relative to the file). Shards may lie on a
            server, ``https://HOST/cc3m/{00000..00331}.tar`` or ``s3://…``, and are read there (see
            ``remote``).
        progress: shown while shards are indexed for the first time (about a second for 10,000
            pairs, then cached).
        keep: what was indexed; otherwise nothing is written.

    Raises:
        UserError: nothing is there, a shard or table is malformed, over 1 % of the pairs lack image
            or caption, or a server is not reached or cannot give parts of a file.
    """
    text = os.fspath(source)
    if "\0" in text:
        raise UserError(f"--pairs {text!r} has a NUL character in it; no file has such a name")
    if text.endswith((".csv", ".tsv")):
        if is_remote(text):
            raise UserError(
                f"a table is read on this machine, with its images: copy {shown(text)}, or give tar"
                " shards"
            )
        return TablePairs(Path(text))
    paths: list[Path | str] = []
    if os.path.exists(text):  # noqa: PTH110 (a pattern may be longer than a name); as it is named, whatever braces that has
        paths = sorted(Path(text).glob("*.tar")) if Path(text).is_dir() else [Path(text)]
        if not paths:
            raise UserError(
                f"no pairs match {text}/*.tar; give tar shards, their folder, or a .csv or .tsv"
                " file"
            )
    told = repr(text if len(text) < 200 else f"{text[:100]}…")
    try:
        if not paths and sum(map(_count, text.split("::"))) > MOST_SHARDS:
            raise UserError(
                f"--pairs {told} names more than {MOST_SHARDS} shards; write the numbers that"
                " there are"
            )
        patterns = [] if paths else expand_urls(text)
    except UserError:
        raise
    except (
        ValueError,
        AssertionError,
    ) as error:  # braces without an end, a variable of webdataset's that is not set
        raise UserError(
            f"--pairs {told} is no pattern of shards ({first_line(error)}); write it as"
            " 'cc3m/{00000..00331}.tar'"
        ) from None
    for pattern in patterns:
        if is_remote(pattern):
            if "*" in pattern:
                raise UserError(
                    "shards on a server are named by braces, {00000..00331}.tar, not by '*':"
                    f" {shown(pattern)}"
                )
            paths.append(pattern)
            continue
        found = sorted(glob.glob(pattern)) if glob.has_magic(pattern) else [pattern]  # noqa: PTH207 (absolute patterns)
        if not found:
            raise UserError(
                f"no pairs match {pattern}; give tar shards, their folder, or a .csv or .tsv file"
            )
        paths += map(Path, found)
    if missing := [path for path in paths if isinstance(path, Path) and not path.is_file()]:
        raise UserError(
            f"{len(missing)} of {len(paths)} shards are missing, first {missing[0]}; check --pairs"
            f" {told}"
        )
    remote = iter(find_remote([path for path in paths if isinstance(path, str)]))
    tars = [path if isinstance(path, Path) else next(remote) for path in paths]
    return TarPairs(shown(text) if is_remote(text) else text, tars, progress or Silent(), keep)


def _count(pattern: str) -> int:
    """How many names a brace pattern stands for, without making one. Raises ``ValueError``: braces
    are nested too deeply."""
    counts: list[
        int
    ] = []  # of the braces counted so far; in the pattern a NUL and the number here stand for each

    def names(part: str) -> int:
        return math.prod(counts[int(number)] for number in re.findall("\0(\\d+)\0", part))

    def counted(braces: re.Match[str]) -> str:
        if found := _RANGE.fullmatch(braces[1]):
            first, last = (
                (int(found[1]), int(found[2])) if found[1] else (ord(found[3]), ord(found[4]))
            )
            count = abs(last - first) // (int(found[5] or 1) or 1) + 1
        else:
            count = sum(map(names, braces[1].split(",")))
        counts.append(min(count, MOST_SHARDS + 1))
        return f"\0{len(counts) - 1}\0"

    pattern = re.sub(r"\\.", "", pattern)
    for _ in range(DEEPEST):
        pattern, more = re.subn(r"\{([^{}]*)\}", counted, pattern)
        if not more:
            return names(pattern)
    raise ValueError("its braces are nested too deeply")


class TarPairs(PairSource):
    """Pairs in webdataset tar shards. A key is ``SHARD/KEY``, for example ``00012/000120034``.

    Where they lie is a table that all processes of a machine share; see ``tables``.
    """

    def __init__(
        self, name: str, paths: Sequence[Path | RemoteFile], progress: Progress, keep: bool = True
    ) -> None:
        self.name = name
        names = _shard_names(paths)
        identities = [tar_identity(path) for path in paths]
        what = [[*identity, name] for identity, name in zip(identities, names, strict=True)]
        self._table = kept_table(
            "pair-index",
            [VERSION, what],
            lambda: _index(paths, names, progress, keep),
            (lambda: progress.start("another process indexes these shards", 1)) if keep else None,
        )
        self.skipped = tuple((key, reason) for key, reason in self._table.facts["skipped"])
        self._versions = [version for _, _, version in identities]
        starts = np.cumsum([0, *self._table.facts["counts"]])
        self.shards = tuple(
            Shard(name, path, int(first), int(end - first))
            for name, path, first, end in zip(names, paths, starts[:-1], starts[1:], strict=True)
        )
        self.fingerprint = self._table.facts["fingerprint"]
        _check_skipped(self)

    def key(self, index: int) -> str:
        return (
            f"{self.shards[self.place_of(index)].name}/{self._table['rows'][index]['key'].decode()}"
        )

    def __getitem__(self, index: int) -> Pair:
        place, row = self.place_of(index), self._table["rows"][index]
        shard, tar, places = (
            self.shards[place],
            self.shards[place].path,
            (row["image"], row["caption"]),
        )
        try:
            if isinstance(tar, RemoteFile):
                image, text = tar.read(places)
            else:
                image, text = (read_member(tar, self._versions[place], *each) for each in places)
        except OSError as error:
            raise BadPair(f"cannot read {tar} ({error.strerror})") from error
        try:
            caption = text.decode("utf-8") if row["plain"] else json.loads(text).get("caption")
            if not isinstance(caption, str):
                raise ValueError("json without a caption")
            caption.encode()  # JSON may have half of a character, which no tokenizer takes
        except (ValueError, AttributeError) as error:
            raise BadPair(f"caption is not readable ({error})") from error
        return Pair(f"{shard.name}/{row['key'].decode()}", shard.name, caption.strip(), image)


def _index(
    paths: Sequence[Path | RemoteFile], names: Sequence[str], progress: Progress, keep: bool
) -> Made:
    """A row for each pair – its key in the shard, offset and size of image and caption, and whether
    the caption is plain text – and of all of them ``counts`` by shard, ``skipped`` samples and a
    ``fingerprint``."""
    progress.start("indexing shards", len(paths))
    digest, skipped, parts = hashlib.sha256(), [], []
    small = sum(tar_identity(path)[1] for path in paths) <= HASHED_WHOLE_BYTES
    # servers are waited for, disks are not
    with ThreadPoolExecutor(
        AT_ONCE if any(isinstance(path, RemoteFile) for path in paths) else 1
    ) as pool:
        indices = pool.map(lambda path: index_tar(path, (*IMAGES, *CAPTIONS), keep=keep), paths)
        for path, name, index in zip(paths, names, indices, strict=True):
            rows, incomplete = _complete(index)
            digest.update(rows["key"].tobytes())
            digest.update(np.stack([rows["image"], rows["caption"]], 1).tobytes())
            if small:
                with path.open("rb") as file:
                    digest.update(file.read())
            skipped += [(f"{name}/{key}", "no image or no caption") for key in incomplete]
            parts.append(rows)
            progress.advance()
    facts = {
        "counts": [*map(len, parts)],
        "skipped": skipped,
        "fingerprint": content_key([digest.hexdigest(), names], 32),
    }
    return {"rows": np.concatenate(parts)}, facts


def _complete(index: TarIndex) -> tuple[np.ndarray, list[str]]:
    """Rows of the table for samples with image and caption, and the keys of the others."""
    there = index.places[..., 1] >= 0
    whole = there[:, :TXT].any(1) & there[:, TXT:].any(1)
    numbers, plain = np.flatnonzero(whole), there[whole, TXT]
    types = [
        ("key", index.keys.dtype),
        ("image", np.int64, 2),
        ("caption", np.int64, 2),
        ("plain", bool),
    ]
    rows = np.empty(len(numbers), types)
    rows["key"], rows["plain"] = index.keys[whole], plain
    rows["image"] = index.places[numbers, there[whole, :TXT].argmax(1)]
    rows["caption"] = index.places[numbers, np.where(plain, TXT, TXT + 1)]
    return rows, [key.decode() for key in index.keys[~whole]]


def _shard_names(paths: Sequence[Path | RemoteFile]) -> list[str]:
    """File stems, or ``folder/stem`` where stems repeat."""
    names = [path.stem for path in paths]
    if len(set(names)) < len(names):
        names = [f"{path.parent.name}/{path.stem}" for path in paths]
    if len(set(names)) < len(names):
        repeated = next(name for name in names if names.count(name) > 1)
        raise UserError(
            f"two shards are called {repeated}; pairs are known by shard and key, so rename one"
        )
    return names


def _check_skipped(source: PairSource) -> None:
    tally = Tally(f"pairs of {source.name}")
    for key, reason in source.skipped:
        tally.add(key, reason)
    tally.check(len(source) + len(source.skipped))
    if not len(source):
        raise UserError(
            f"no pairs in {source.name}: a sample is KEY.jpg with KEY.txt (or KEY.json with a"
            " caption)"
        )
