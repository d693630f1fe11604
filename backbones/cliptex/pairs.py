"""Image-caption pairs: webdataset tar shards or a CSV/TSV table, opened once and then read by index.

A shard is indexed (names, offsets, sizes), not unpacked, so that any pair can be read directly: an epoch's order is a
function of (seed, epoch) alone, resuming costs nothing, and ranks and workers share an epoch without loss.
"""

from __future__ import annotations

import bisect
import csv
import functools
import glob
import hashlib
import io
import json
import os
import tarfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image
from webdataset.shardlists import expand_urls

from backbones.cliptex.protocols import Progress, Silent
from backbones.errors import UserError
from backbones.files import content_key, home, replacing

IMAGE_SUFFIXES = ("jpg", "jpeg", "png", "webp")
IMAGE_COLUMNS = ("filepath", "image", "path", "image_path")
CAPTION_COLUMNS = ("caption", "title", "text")
ROWS_PER_SHARD = 1000
MAX_BAD_SHARE = 0.01
HASHED_WHOLE_BYTES = 1 << 29


@dataclass(frozen=True)
class Pair:
    """One pair: its unique key, the shard it lies in, its caption, and the encoded image (JPEG, PNG or WebP bytes)."""

    key: str
    shard: str
    caption: str
    image: bytes


@dataclass(frozen=True)
class Shard:
    """A part of a source that is read in one go: pairs ``start`` to ``start + count`` (exclusive) of the source."""

    name: str
    path: Path
    start: int
    count: int


class BadPair(ValueError):
    """One pair cannot be read; the message says why. Counted and named by ``Tally``, an error only past 1 %."""


class Tally:
    """Counts what could not be read: count in = count out + ``len(bad)``."""

    def __init__(self, what: str) -> None:
        self.what = what
        self.bad: dict[str, str] = {}

    def add(self, key: str, reason: str) -> None:
        self.bad[key] = reason

    def summary(self) -> str:
        """One line: how many, and the first few of them."""
        return f"{len(self.bad)} {self.what} cannot be used, first {', '.join(list(self.bad)[:5])}"

    def check(self, total: int) -> None:
        """Raises ``UserError`` when more than 1 % (and more than one) of ``total`` is bad."""
        if len(self.bad) > max(1, MAX_BAD_SHARE * total):
            named = "; ".join(f"{key}: {reason}" for key, reason in list(self.bad.items())[:3])
            raise UserError(f"{len(self.bad)} of {total} {self.what} cannot be read ({named}); repair or remove them")


def decode_image(data: bytes, short_side: int | None = None) -> np.ndarray:
    """Encoded bytes → (H, W, 3) uint8 RGB; shrunk (antialiased) to ``short_side`` pixels on the short side if larger.

    Raises:
        BadPair: the bytes are not a whole image.
    """
    try:
        with Image.open(io.BytesIO(data)) as image:
            if short_side:  # JPEG decodes straight to a smaller size: twice as fast for photographs
                image.draft("RGB", (short_side * 2, short_side * 2))
            decoded = image.convert("RGB")
            if short_side and min(decoded.size) > short_side:
                scale = short_side / min(decoded.size)
                size = (max(short_side, round(decoded.width * scale)), max(short_side, round(decoded.height * scale)))
                decoded = decoded.resize(size, Image.Resampling.BICUBIC)
            return np.array(decoded)
    except Exception as error:  # PIL raises nearly anything on corrupt bytes
        raise BadPair(f"not a readable image ({type(error).__name__}: {error})") from error


class PairSource:
    """Pairs in a stable order, read by index. Open with ``open_pairs``; cheap to pickle and to share with workers.

    Attributes:
        name: what the user called it.
        shards: its shards, in order.
        skipped: (key, reason) of each pair left out when it was opened (no image, or no caption).
        fingerprint: hash over shards, keys and sizes, and over all bytes where the whole is under 512 MiB.
    """

    name: str
    shards: tuple[Shard, ...]
    skipped: tuple[tuple[str, str], ...]
    fingerprint: str

    def __len__(self) -> int:
        return self.shards[-1].start + self.shards[-1].count if self.shards else 0

    def place_of(self, index: int) -> int:
        """Which shard pair ``index`` lies in. Raises ``IndexError`` past the end."""
        if not 0 <= index < len(self):
            raise IndexError(index)
        return bisect.bisect_right(self.shards, index, key=lambda shard: shard.start) - 1

    def key(self, index: int) -> str:
        """Key of pair ``index``, unique in the source, without reading the pair."""
        raise NotImplementedError

    def __getitem__(self, index: int) -> Pair:
        """Pair ``index``. Raises ``BadPair`` when its bytes cannot be read (they are not decoded here)."""
        raise NotImplementedError

    def iter_shard(self, shard: Shard) -> Iterator[int]:
        """Indices of a shard's pairs, in the order they lie on disk."""
        return iter(range(shard.start, shard.start + shard.count))

    def epoch_order(self, seed: int, epoch: int, window: int = 100_000) -> np.ndarray:
        """A permutation of all indices, (N,) int64, a function of (seed, epoch) alone.

        Shards are shuffled, then pairs within neighbouring shards that hold at least ``window`` pairs together, so that
        reading stays local; a source smaller than that is shuffled as a whole.
        """
        random = np.random.default_rng([seed, epoch])
        order: list[np.ndarray] = []
        block: list[np.ndarray] = []
        for place in random.permutation(len(self.shards)):
            shard = self.shards[place]
            block.append(np.arange(shard.start, shard.start + shard.count))
            if sum(map(len, block)) >= window:
                order.append(random.permutation(np.concatenate(block)))
                block = []
        if block:
            order.append(random.permutation(np.concatenate(block)))
        return np.concatenate(order)


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
        shards, indices, skipped = [], [], []
        progress.start("indexing shards", len(paths))
        start = 0
        for shard_name, path in zip(_shard_names(paths), paths, strict=True):
            index = _tar_index(path)
            shards.append(Shard(shard_name, path, start, len(index["keys"])))
            indices.append(index)
            skipped += [(f"{shard_name}/{entry.decode()}", "no image or no caption") for entry in index["incomplete"]]
            start += len(index["keys"])
            progress.advance()
        self.shards, self.skipped, self._indices = tuple(shards), tuple(skipped), indices
        _check_skipped(self)
        self.fingerprint = content_key([_tar_fingerprint(self.shards, indices), [shard.name for shard in shards]], 32)

    def key(self, index: int) -> str:
        shard, entry, place = self._locate(index)
        return f"{shard.name}/{entry['keys'][place].decode()}"

    def __getitem__(self, index: int) -> Pair:
        shard, entry, place = self._locate(index)
        key = f"{shard.name}/{entry['keys'][place].decode()}"
        image = _read_range(shard.path, int(entry["mtime_ns"]), *entry["image"][place])
        text = _read_range(shard.path, int(entry["mtime_ns"]), *entry["text"][place])
        try:
            caption = json.loads(text).get("caption") if entry["is_json"][place] else text.decode("utf-8")
        except (ValueError, AttributeError) as error:
            raise BadPair(f"caption is not readable ({error})") from error
        if not isinstance(caption, str):
            raise BadPair("json without a caption")
        return Pair(key, shard.name, caption.strip(), image)

    def _locate(self, index: int) -> tuple[Shard, dict[str, np.ndarray], int]:
        place = self.place_of(index)
        return self.shards[place], self._indices[place], index - self.shards[place].start


class TablePairs(PairSource):
    """Pairs listed in a CSV (comma) or TSV (tab) file. A key is the path as written, with ``#2`` the second time."""

    def __init__(self, path: Path) -> None:
        self.name, self._root = str(path), path.parent
        self._paths, self._captions, self._keys = _read_table(path)
        self.skipped = ()
        stem, count = path.stem, len(self._paths)
        self.shards = tuple(
            Shard(f"{stem}-{start // ROWS_PER_SHARD:05d}", path, start, min(ROWS_PER_SHARD, count - start))
            for start in range(0, count, ROWS_PER_SHARD)
        )
        sizes = [file.stat().st_size if file.is_file() else -1 for file in map(self._root.joinpath, self._paths)]
        missing = [name for name, size in zip(self._paths, sizes, strict=True) if size < 0]
        if len(missing) > max(1, MAX_BAD_SHARE * count):
            raise UserError(
                f"{len(missing)} of {count} images in {path} are missing, first {missing[0]}; paths are relative to it"
            )
        digest = hashlib.sha256()
        for name, size, caption in zip(self._paths, sizes, self._captions, strict=True):
            digest.update(f"{name}|{size}|{caption}\n".encode())
        if sum(sizes) <= HASHED_WHOLE_BYTES:
            for name, size in zip(self._paths, sizes, strict=True):
                digest.update((self._root / name).read_bytes() if size >= 0 else b"missing")
        self.fingerprint = digest.hexdigest()[:32]

    def key(self, index: int) -> str:
        return self._keys[index]

    def __getitem__(self, index: int) -> Pair:
        shard = self.shards[self.place_of(index)]
        try:
            image = (self._root / self._paths[index]).read_bytes()
        except OSError as error:
            raise BadPair(f"cannot read {self._paths[index]} ({error.strerror})") from error
        return Pair(self._keys[index], shard.name, self._captions[index], image)


def _read_table(path: Path) -> tuple[list[str], list[str], list[str]]:
    """Image paths, captions and unique keys of a table."""
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:  # spreadsheets write a byte order mark
            rows = csv.DictReader(file, delimiter="\t" if path.suffix == ".tsv" else ",", strict=True)
            header = rows.fieldnames or []
            image_column = next((name for name in IMAGE_COLUMNS if name in header), None)
            caption_column = next((name for name in CAPTION_COLUMNS if name in header), None)
            if image_column is None or caption_column is None:
                raise UserError(
                    f"{path} needs a header with the columns filepath and caption; it has {', '.join(header) or 'none'}"
                )
            images, captions, keys = [], [], []
            seen: dict[str, int] = {}
            for row in rows:
                image, caption = row[image_column], row[caption_column]
                if not image or caption is None or None in row:
                    raise UserError(
                        f"{path} line {rows.line_num}: needs {len(header)} fields; quote captions with separators"
                    )
                seen[image] = seen.get(image, 0) + 1
                keys.append(image if seen[image] == 1 else f"{image}#{seen[image]}")
                images.append(image)
                captions.append(caption.strip())
    except FileNotFoundError:
        raise UserError(f"no pairs at {path}; check --pairs") from None
    except (csv.Error, UnicodeDecodeError) as error:
        raise UserError(f"{path} is not a readable {path.suffix[1:]} file: {error}") from error
    if not images:
        raise UserError(f"{path} has a header but no pairs")
    if len(set(keys)) != len(keys):
        raise UserError(f"{path}: a path ends in '#2' like a repeated one; rename it")
    return images, captions, keys


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


def _tar_index(path: Path) -> dict[str, np.ndarray]:
    """Keys, and (offset, size) of image and caption, in the shard's order; cached by path, size and time."""
    stat = path.stat()
    cached = home() / "pair-index" / f"{content_key([str(path.resolve()), stat.st_size, stat.st_mtime_ns, 2])}.npz"
    if cached.is_file():
        with np.load(cached, allow_pickle=False) as arrays:
            return {**arrays, "mtime_ns": np.array(stat.st_mtime_ns)}
    if not _has_end_mark(path, stat.st_size):  # tarfile would take a shard cut between two members for a whole one
        raise UserError(f"shard {path} is cut off or no uncompressed tar file; fetch it again")
    samples: dict[str, dict[str, tuple[int, int]]] = {}
    try:
        with tarfile.open(path, "r:") as archive:
            for member in archive:
                if not member.isfile():
                    continue
                folder, _, name = member.name.rpartition("/")
                key, _, suffix = name.partition(".")  # webdataset: a key ends at the first dot of the file's name
                key = f"{folder}/{key}" if folder.strip("./") else key
                parts = samples.setdefault(key, {})
                if suffix.lower() in parts:
                    raise UserError(f"{path} holds {member.name} twice; keys must be unique in a shard")
                if member.offset_data + member.size > stat.st_size:
                    raise UserError(f"shard {path} ends in the middle of {member.name}; fetch it again")
                parts[suffix.lower()] = (member.offset_data, member.size)
            end = archive.offset
        if not _only_zeros(path, end):  # tarfile takes a damaged header for the end, and so the rest for nothing
            raise UserError(f"shard {path} is damaged at byte {end}; fetch it again")
    except tarfile.TarError as error:
        raise UserError(f"shard {path} is not a readable, uncompressed tar file ({error}); fetch it again") from error
    keys, images, texts, is_json, incomplete = [], [], [], [], []
    for key, parts in samples.items():
        image = next((parts[suffix] for suffix in IMAGE_SUFFIXES if suffix in parts), None)
        text = parts.get("txt") or parts.get("json")
        if image is None or text is None:
            incomplete.append(key.encode())
            continue
        keys.append(key.encode())
        images.append(image)
        texts.append(text)
        is_json.append("txt" not in parts)
    index = {
        "keys": np.array(keys, dtype=np.bytes_),
        "image": np.array(images, dtype=np.int64).reshape(-1, 2),
        "text": np.array(texts, dtype=np.int64).reshape(-1, 2),
        "is_json": np.array(is_json, dtype=bool),
        "incomplete": np.array(incomplete, dtype=np.bytes_),
    }
    with replacing(cached) as temporary, temporary.open("wb") as file:
        np.savez(file, **index)  # type: ignore[arg-type]
    return {**index, "mtime_ns": np.array(stat.st_mtime_ns)}


def _has_end_mark(path: Path, size: int) -> bool:
    """Whether the file ends with a block of zeros, as every whole tar file does."""
    if size < tarfile.BLOCKSIZE or size % tarfile.BLOCKSIZE:
        return False
    with path.open("rb") as file:
        file.seek(-tarfile.BLOCKSIZE, os.SEEK_END)
        return not any(file.read())


def _only_zeros(path: Path, start: int) -> bool:
    """Whether nothing but zeros follows from byte ``start`` on."""
    with path.open("rb") as file:
        file.seek(start)
        while piece := file.read(1 << 20):
            if any(piece):
                return False
    return True


def _tar_fingerprint(shards: Sequence[Shard], indices: Sequence[dict[str, np.ndarray]]) -> str:
    digest = hashlib.sha256()
    total = sum(shard.path.stat().st_size for shard in shards)
    for shard, index in zip(shards, indices, strict=True):
        for name in ("keys", "image", "text", "is_json"):
            digest.update(index[name].tobytes())
        if total <= HASHED_WHOLE_BYTES:
            digest.update(shard.path.read_bytes())
    return digest.hexdigest()


@functools.lru_cache(maxsize=16)
def _opened(path: Path, mtime_ns: int, pid: int) -> io.FileIO:
    return io.FileIO(path)


def _read_range(path: Path, mtime_ns: int, offset: int, size: int) -> bytes:
    """``size`` bytes at ``offset``. The file stays open; position-free reads are safe in every thread and worker."""
    try:
        file = _opened(path, mtime_ns, os.getpid())
        data = os.pread(file.fileno(), int(size), int(offset))
    except OSError as error:
        raise BadPair(f"cannot read {path} ({error.strerror})") from error
    if len(data) != size:
        raise BadPair(f"{path} ends early")
    return data
