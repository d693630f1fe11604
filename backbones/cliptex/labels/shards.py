"""One shard of labels: a tar in the webdataset convention, and a small file beside it that says
that it is whole.

    00012.tar      000120034.seg.png, 000120034.depth.png, 000120034.normal.webp …: ``tar tf`` and
    any viewer show them 00012.tar.json identity and sha256 of that tar, counts, failures, cost

Both are written beside their place and renamed, the second last: a shard without it does not count.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from webdataset import TarWriter

from common.files import atomic_write, read_json, sha256_file, write_json

VERSION = 3  # 1 had normals with y down, 2 a format of its own


class DamagedShard(Exception):
    """A shard file is missing, cut off or has changed; the message says which."""


def member_name(name: str) -> str:
    """What a pair ``SHARD/NAME`` is called in the tar of its labels: as in its own tar. Pairs of a
    table are paths, whose dots would end a key."""
    name = name.replace("%", "%25").replace(".", "%2E")
    return f"%2F{name[1:]}" if name.startswith("/") else name


class ShardWriter:
    """One shard being written, see ``writing_shard``. ``extra``: what else the small file shall
    say."""

    def __init__(self, name: str, tar: TarWriter) -> None:
        self.extra: dict[str, Any] = {}
        self._name, self._tar = name, tar
        self._keys: set[str] = set()
        self._failed: list[list[str]] = []
        self._bytes: dict[str, int] = {}

    def add(self, key: str, coded: Mapping[str, bytes]) -> None:
        """Append one pair's labels, as ``encode`` gives them.

        Raises:
            ValueError: the key is there already, or there is nothing to append.
        """
        name = member_name(key.removeprefix(f"{self._name}/"))
        if name in self._keys or not coded:
            raise ValueError(
                f"labels of {key!r} are in shard {self._name} already"
                if coded
                else f"no labels of {key!r}"
            )
        self._keys.add(name)
        self._tar.write({"__key__": name, **coded})
        for suffix, data in coded.items():
            task = suffix.split(".")[0]
            self._bytes[task] = self._bytes.get(task, 0) + len(data)

    def fail(self, key: str, reason: str) -> None:
        """Name a pair that has no labels, and why: count in = count out + failures."""
        self._failed.append([key, reason])

    def counts(self) -> dict[str, Any]:
        """What the small file says of the pairs."""
        return {
            "pairs": len(self._keys),
            "failed": self._failed,
            "task_bytes": self._bytes,
            **self.extra,
        }


@contextlib.contextmanager
def writing_shard(root: Path, name: str, identity: str) -> Iterator[ShardWriter]:
    """A shard to write. Leaving the block normally puts its files in their place, an error leaves
    nothing."""
    path = tar_path(root, name)
    for left in path.parent.glob(f".{path.name}.*.tmp"):  # of a labelling that was killed
        left.unlink(missing_ok=True)
    with atomic_write(path) as temporary:
        with temporary.open("wb") as file:
            tar = TarWriter(file, user="", group="", encoder=False, mtime=0, format="PAX_FORMAT")
            writer = ShardWriter(name, tar)
            try:
                yield writer
            except BaseException:
                with contextlib.suppress(Exception):  # what it still had to write is of no use
                    tar.close()
                raise
            tar.close()
        told = {
            "version": VERSION,
            "identity": identity,
            "sha256": sha256_file(temporary),
            "bytes": temporary.stat().st_size,
            **writer.counts(),
        }
        summary_path(path).unlink(missing_ok=True)  # it speaks of a tar that is replaced now
    write_json(summary_path(path), told)


def tar_path(root: Path, name: str) -> Path:
    return root / f"{name}.tar"


def summary_path(tar: Path) -> Path:
    return tar.with_name(f"{tar.name}.json")


def read_summary(root: Path, name: str) -> dict[str, Any] | None:
    """What was said of a shard when it was finished; None when it was not. Its tar is not looked
    at."""
    path = summary_path(tar_path(root, name))
    try:
        summary = read_json(path)
        summary["identity"] + "", summary["bytes"] + summary["pairs"], list(summary["failed"])
        summary["task_bytes"].items()
        return {**summary, "name": name} if summary["sha256"] else None
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DamagedShard(f"{path} is not readable ({error})") from error


def check_shard(root: Path, shard: Mapping[str, Any], *, hashed: bool = True) -> None:
    """Compare a shard's tar with what was said of it: every byte, or its size alone. Raises
    ``DamagedShard``."""
    path = tar_path(root, shard["name"])
    if not path.is_file():
        raise DamagedShard(f"{path} is missing")
    if path.stat().st_size != shard["bytes"]:
        raise DamagedShard(f"{path} is cut off")
    if hashed and sha256_file(path) != shard["sha256"]:
        raise DamagedShard(f"{path} has changed on disk")
