"""One shard of labels: a tar in the webdataset convention, and a summary beside it.

    00012.tar        000120034.seg.png, 000120034.depth.png, 000120034.normal.webp …
    00012.tar.json   identity and sha256 of that tar, counts, failures, cost

Both are written atomically, the summary last: a shard without one does not count.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from webdataset import TarWriter

from cliptex_common.files import atomic_write, read_json, sha256_file, write_json

VERSION = 3
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
            "version": VERSION,
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
