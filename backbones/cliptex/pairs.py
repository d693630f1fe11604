"""Image-caption pairs: webdataset shards or a CSV/TSV table, opened once and then read by index.

A shard is indexed (names, offsets, sizes), not unpacked, so that any pair can be read directly: an
epoch's order is a function of (seed, epoch) alone, resuming costs nothing, and ranks and workers
share an epoch without loss. Shards on servers (``https://``, ``s3://`` …) are fetched once by
fsspec, then read as local files. They are stored under ``$CLIPTEX_HOME/shards`` by URL. Remove
them (``cache rm --kind shards``) to fetch them again, for example after they were replaced on the
server.
"""

from __future__ import annotations

import bisect
import csv
import glob
import hashlib
import io
import json
import math
import os
import re
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path, PurePosixPath
from typing import TypeVar
from urllib.parse import unquote, urlsplit

import fsspec
import numpy as np
from PIL import Image
from webdataset.shardlists import expand_urls

from cliptex_common.errors import (
    DISK_FULL,
    UserError,
    first_line,
    hide_secrets,
    redact,
    remember_secrets,
)
from cliptex_common.files import (
    atomic_write,
    content_key,
    home,
    lock_path,
    locked,
    mark_in_use,
    read_bytes,
)
from cliptex_common.images import open_image, to_rgb
from cliptex_common.progress import Progress, Silent
from cliptex_common.tables import Contents, cached_table, read_member, tar_identity, walk_tar

MAX_BAD_SHARE = 0.01
MOST_SHARDS = 1_000_000
FULL_HASH_BYTES = 1 << 29  # sources up to this size are hashed completely


@dataclass(frozen=True)
class Pair:
    """One pair: its unique key, its caption, and the encoded image (JPEG, PNG or WebP bytes)."""

    key: str
    caption: str
    image: bytes


@dataclass(frozen=True)
class Shard:
    """A part of a source that is read sequentially: pairs ``start`` to ``start + count``
    (exclusive) of the source."""

    name: str
    path: Path
    start: int
    count: int


class BadPair(ValueError):
    """A pair cannot be read or labelled; the message says why. An error only past 1 %, see
    ``FailureCounter``."""


class FailureCounter:
    """Counts items that cannot be used.

    Attributes:
        bad: key → reason.
    """

    def __init__(self, items: str) -> None:
        self.items = items
        self.bad: dict[str, str] = {}

    def summary(self) -> str:
        """One line: how many, and the first few of them."""
        examples = ", ".join(list(self.bad)[:5])
        return f"{len(self.bad)} {self.items} cannot be used, first {examples}"

    def check(self, total: int) -> None:
        """Raises ``UserError`` if more than 1 % of ``total`` (and more than one) failed, or all."""
        count = len(self.bad)
        if count > max(1, MAX_BAD_SHARE * total) or 0 < count == total:
            examples = "; ".join(f"{key}: {why}" for key, why in list(self.bad.items())[:3])
            raise UserError(
                f"{len(self.bad)} of {total} {self.items} cannot be read ({examples}); repair or"
                " remove them"
            )


def decode_image(data: bytes, short_side: int | None = None, *, exact: bool = True) -> np.ndarray:
    """Encoded bytes → (H, W, 3) uint8 RGB; a larger image is shrunk (antialiased) to ``short_side``
    pixels on the short side.

    Args:
        exact: otherwise shrink only as far as the decoder does at no cost (a JPEG at 1/2, 1/4, 1/8;
            never below twice ``short_side``): for callers that resample anyway.

    Raises:
        BadPair: the bytes are not a complete image.
    """
    try:
        with open_image(io.BytesIO(data)) as image:
            if short_side:
                image.draft("RGB", (short_side * 2, short_side * 2))
            decoded = to_rgb(image)
            if short_side and exact and min(decoded.size) > short_side:
                scale = short_side / min(decoded.size)
                size = (
                    max(short_side, round(decoded.width * scale)),
                    max(short_side, round(decoded.height * scale)),
                )
                decoded = decoded.resize(size, Image.Resampling.BICUBIC)
            return np.array(decoded)
    except Exception as error:  # PIL raises nearly anything on corrupt bytes
        raise BadPair(f"not a readable image ({type(error).__name__}: {error})") from error


class PairSource:
    """Pairs in a stable order, read by index. Open with ``open_pairs``; cheap to pickle and to
    share with workers.

    Attributes:
        name: as the user wrote it.
        shards: in order.
        skipped: (key, reason) of each pair left out when the source was opened (no image, or no
            caption).
        fingerprint: hash over shards, keys and sizes, and over all bytes of sources under 512 MiB.
    """

    name: str
    shards: tuple[Shard, ...]
    skipped: tuple[tuple[str, str], ...]
    fingerprint: str

    def __len__(self) -> int:
        return self.shards[-1].start + self.shards[-1].count if self.shards else 0

    def shard_of(self, index: int) -> int:
        """Number of the shard that holds pair ``index``. Raises ``IndexError`` past the end."""
        if not 0 <= index < len(self):
            raise IndexError(index)
        return bisect.bisect_right(self.shards, index, key=lambda shard: shard.start) - 1

    def key(self, index: int) -> str:
        """Key of pair ``index``, ``SHARD/…``, unique in the source, without reading the pair."""
        raise NotImplementedError

    def __getitem__(self, index: int) -> Pair:
        """Pair ``index``. Raises ``BadPair`` if its bytes cannot be read (they are not decoded
        here)."""
        raise NotImplementedError

    def decoded(
        self, index: int, short_side: int | None, *, exact: bool = True
    ) -> tuple[Pair, np.ndarray]:
        """Pair ``index`` and its image, as labels are made and trainings read them; see
        ``decode_image``.

        Raises:
            BadPair: its bytes cannot be read or are no image, or its caption is empty.
        """
        pair = self[index]
        if not pair.caption:
            raise BadPair("its caption is empty")
        return pair, decode_image(pair.image, short_side, exact=exact)

    def iter_shard(self, shard: Shard) -> Iterator[int]:
        """Indices of a shard's pairs, in the order of the file."""
        return iter(range(shard.start, shard.start + shard.count))

    def epoch_order(self, seed: int, epoch: int, window: int = 100_000) -> np.ndarray:
        """A permutation of all indices, (N,) int64, a function of (seed, epoch) alone.

        Shards are shuffled, then pairs within neighbouring shards that hold at least ``window``
        pairs together, so that reading stays local. A smaller source is shuffled as one.
        """
        random = np.random.default_rng([seed, epoch])
        order: list[np.ndarray] = []
        block: list[np.ndarray] = []
        for number in random.permutation(len(self.shards)):
            shard = self.shards[number]
            block.append(np.arange(shard.start, shard.start + shard.count))
            if sum(map(len, block)) >= window:
                order.append(random.permutation(np.concatenate(block)))
                block = []
        if block:
            order.append(random.permutation(np.concatenate(block)))
        return np.concatenate(order)


PAIR_IMAGES, PAIR_CAPTIONS = ("jpg", "jpeg", "png", "webp"), ("txt", "json")
MEMBERS = (("image", np.int64, 2), ("caption", np.int64, 2))  # offset and size
TABLE_VERSION = 2  # of the cached tables
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
            (see ``fetch_shards``).
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
    # fetched files in the places of their URLs
    fetched = iter(fetch_shards([path for path in paths if isinstance(path, str)], progress))
    tars = [path if isinstance(path, Path) else next(fetched) for path in paths]
    return TarPairs(hide_secrets(text), tars, progress, keep)


def _list_shards(text: str) -> list[Path | str]:
    """Paths and URLs of the shards that ``text`` names, in order."""
    is_folder = os.path.isdir(text)  # noqa: PTH112 (a pattern may be longer than a file name)
    try:
        ranges = re.findall(r"\{(\d+)\.\.(\d+)", text)
        count = math.prod(abs(int(end) - int(start)) + 1 for start, end in ranges)
        if count > MOST_SHARDS:
            raise ValueError(f"{count} shards are more than {MOST_SHARDS}")
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

    Their offsets are a table that all processes of a machine share; see ``cliptex_common.tables``.
    """

    def __init__(
        self, name: str, paths: Sequence[Path], progress: Progress, keep: bool = True
    ) -> None:
        self.name = name
        names = _shard_names(paths)
        identities = [tar_identity(path) for path in paths]
        self._table = cached_table(
            "pair-index",
            [TABLE_VERSION, identities, names],
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
        image = next((members[suffix] for suffix in PAIR_IMAGES if suffix in members), None)
        caption = next((members[suffix] for suffix in PAIR_CAPTIONS if suffix in members), None)
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


IMAGE_COLUMNS = ("filepath", "image", "path", "image_path")
CAPTION_COLUMNS = ("caption", "title", "text")
ROWS_PER_SHARD = 1000


class TablePairs(PairSource):
    """Pairs listed in a CSV (comma) or TSV (tab) file, a thousand rows a shard.

    A key is ``SHARD/PATH``, the path as written, with ``#2`` the second time:
    ``train-00000/images/7.jpg``.
    """

    def __init__(self, path: Path) -> None:
        self.name, self._root = str(path), path.parent
        self._paths, self._captions, self._keys = _read_table(path)
        self.skipped = ()
        count = len(self._paths)
        self.shards = tuple(
            Shard(
                f"{path.stem}-{start // ROWS_PER_SHARD:05d}",
                path,
                start,
                min(ROWS_PER_SHARD, count - start),
            )
            for start in range(0, count, ROWS_PER_SHARD)
        )
        files = [self._root / name for name in self._paths]
        sizes = [file.stat().st_size if file.is_file() else -1 for file in files]
        missing = FailureCounter(f"images in {path}")
        for name, size in zip(self._paths, sizes, strict=True):
            if size < 0:
                missing.bad[name] = "no such file beside the table"
        missing.check(count)
        digest = hashlib.sha256()
        for name, size, caption in zip(self._paths, sizes, self._captions, strict=True):
            digest.update(f"{name}|{size}|{caption}\n".encode())
        if sum(sizes) <= FULL_HASH_BYTES:
            for file, size in zip(files, sizes, strict=True):
                digest.update(file.read_bytes() if size >= 0 else b"missing")
        self.fingerprint = digest.hexdigest()[:32]

    def key(self, index: int) -> str:
        return f"{self.shards[self.shard_of(index)].name}/{self._keys[index]}"

    def __getitem__(self, index: int) -> Pair:
        try:
            image = read_bytes(self._root / self._paths[index])
        except OSError as error:
            raise BadPair(f"cannot read {self._paths[index]!r} ({error.strerror})") from error
        return Pair(self.key(index), self._captions[index], image)


def _read_table(path: Path) -> tuple[list[str], list[str], list[str]]:
    """Image paths, captions and unique keys of a table."""
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:  # spreadsheets write a mark
            delimiter = "\t" if path.suffix == ".tsv" else ","
            rows = csv.DictReader(file, delimiter=delimiter, strict=True)
            header = rows.fieldnames or []
            image_column = next((name for name in IMAGE_COLUMNS if name in header), None)
            caption_column = next((name for name in CAPTION_COLUMNS if name in header), None)
            if image_column is None or caption_column is None:
                raise UserError(
                    f"{path} needs a header with the columns filepath and caption; it has"
                    f" {', '.join(header) or 'none'}"
                )
            images, captions, keys = [], [], []
            counts: dict[str, int] = {}
            for row in rows:
                image, caption = row[image_column], row[caption_column]
                if not image or caption is None or None in row:
                    raise UserError(
                        f"{path} line {rows.line_num}: needs {len(header)} fields; quote captions"
                        " with separators"
                    )
                counts[image] = counts.get(image, 0) + 1
                keys.append(image if counts[image] == 1 else f"{image}#{counts[image]}")
                images.append(image)
                captions.append(caption.strip())
    except FileNotFoundError:
        raise UserError(f"no pairs at {path}; check --pairs") from None
    except (csv.Error, UnicodeDecodeError) as error:
        raise UserError(f"{path} is not a readable {path.suffix[1:]} file: {error}") from error
    if not images:
        raise UserError(f"{path} has a header but no pairs")
    return images, captions, keys


DOWNLOADS = 16  # at a time


def is_remote(text: str) -> bool:
    """Whether ``text`` is a URL."""
    return re.match(r"[A-Za-z][A-Za-z0-9+.-]+://", text) is not None


def fetch_shards(urls: Sequence[str], progress: Progress) -> list[Path]:
    """Local copies of these shards, in order; those that exist are not fetched again.

    A copy keeps the names of the file and of its folder, so that the keys of its pairs are those of
    any other copy.

    Raises:
        UserError: a shard cannot be fetched; the message has no credentials.
    """
    if not urls:
        return []
    progress.start("fetching shards", len(urls))
    paths = []
    with ThreadPoolExecutor(DOWNLOADS) as pool:
        for path in pool.map(_fetch, urls):
            paths.append(path)
            progress.advance()
    return paths


def _fetch(url: str) -> Path:
    remote = PurePosixPath(unquote(urlsplit(url).path))
    folder = home() / "shards" / content_key(url)
    path = folder / remote.parent.name / remote.name
    mark_in_use(folder)
    if path.exists():
        return path
    with locked(lock_path("shard", url)):
        if not path.exists():
            # not fsspec's simplecache: it would take the part that a killed download left for all
            with atomic_write(path) as temporary:
                _download(url, temporary)
    return path


def _download(url: str, path: Path) -> None:
    protocol, name = url.partition("://")[0], hide_secrets(url)
    remember_secrets(url)
    try:
        fsspec.filesystem(protocol).get_file(url, str(path))
    except Exception as error:  # each protocol has its own errors
        if isinstance(error, OSError) and error.errno in DISK_FULL:
            raise
        raise UserError(
            f"cannot fetch {name}: {redact(first_line(error))}; check --pairs, that its server can"
            " be reached from here, and pip install -e '.[remote]'"
        ) from error


Item = TypeVar("Item")
Result = TypeVar("Result")


def computed_ahead(
    function: Callable[[Item], Result], items: Iterable[Item], threads: int, ahead: int = 0
) -> Iterator[Result]:
    """``function`` of each item, in order, by so many threads (0: when the next one is requested).

    At most ``ahead`` results, or two a thread, wait to be requested.
    """
    if not threads:
        yield from map(function, items)
        return
    pending: deque[Future[Result]] = deque()
    with ThreadPoolExecutor(threads) as pool:
        for item in items:
            pending.append(pool.submit(function, item))
            if len(pending) > (ahead or 2 * threads):
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
