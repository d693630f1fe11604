"""Pairs listed in a CSV or TSV file, their images beside it."""

from __future__ import annotations

import csv
import hashlib
from pathlib import Path

from backbones.cliptex.data.source import (
    FULL_HASH_BYTES,
    BadPair,
    FailureCounter,
    Pair,
    PairSource,
    Shard,
)
from cliptex_common.errors import UserError
from cliptex_common.files import read_bytes

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
