"""``cache ls`` and ``cache rm``: reusable artifacts under ``$CLIPTEX_HOME``."""

from __future__ import annotations

import shutil
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from filelock import Timeout
from pydantic import NonNegativeFloat

from benchmark.cli.output import print_table
from benchmark.cli.parser import JsonOptions, Positionals
from benchmark.execution.progress import console
from benchmark.planning.options import DryRunOptions
from cliptex_common.errors import UserError, suggest
from cliptex_common.files import home, read_json_object
from cliptex_common.locks import guard_removal, lock_path, locked
from cliptex_common.settings import options_dataclass

# Folder under $CLIPTEX_HOME → what each entry is. Left out are locks, users, processes and tasks,
# which running commands need and remove themselves.
KINDS = {
    "features": "encoded features",
    "mini": "rendered world",
    "experts": "expert",
    "labels": "pseudo-labels",
    "weights": "backbone weights",
    "work": "unfinished cell",
    "shared": "shared results",
    "shards": "fetched shard",
    "artifacts": "fetched files of a run",
}
# folders that are one entry, of many small files
INDICES = {
    "datasets": "checks of datasets",
    "content_hashes": "hashes of images",
    "efficiency": "costs of backbones",
    "pair-index": "indices of pairs",
    "label-index": "indices of pseudo-labels",
    "tar-index": "indices of tars",
}


@dataclass(frozen=True)
class CacheEntry:
    """One file or folder; ``used`` is in seconds since the epoch."""

    kind: str
    name: str
    path: Path
    size: int
    used: float
    about: str


@options_dataclass
class KindOptions:
    """Which entries."""

    kind: str | None = None
    """only these: features, mini, experts, labels, weights, work, shared, shards, artifacts,
    datasets, content_hashes, efficiency, pair-index, label-index, tar-index"""

    def entries(self) -> list[CacheEntry]:
        """Those of the kind, in order of their names."""
        kinds = [*KINDS, *INDICES]
        if self.kind and self.kind not in kinds:
            raise UserError(f"unknown --kind {self.kind}; {suggest(self.kind, kinds)}")
        kinds = [self.kind] if self.kind else kinds
        return [entry for kind in kinds for entry in _read(kind)]


@options_dataclass
class ListCache(KindOptions, JsonOptions):
    """List what is cached, its size and when it was last used.

    examples:
      python -m benchmark cache ls --json
      python -m benchmark cache ls --kind features
    """

    def main(self) -> int:
        """Print a line for each entry, and the total."""
        entries = self.entries()
        if not self.output_json([asdict(entry) for entry in entries]):
            _show(entries)
        return 0


@options_dataclass
class RemoveFromCache(KindOptions, DryRunOptions):
    """Remove entries by name (a unique prefix suffices), kind or age; asks first.

    examples:
      python -m benchmark cache rm 3f2a
      python -m benchmark cache rm --kind features --older-than 30 --yes
    """

    names: Positionals[Sequence[str]] = ()
    """see `cache ls`"""
    older_than: NonNegativeFloat | None = None
    """only entries that were not used for so many days"""
    yes: bool = False
    """do not ask"""

    def main(self) -> int:
        """Exit code 1 if an entry is in use."""
        if not self.names and self.kind is None and self.older_than is None:
            raise UserError("choose entries by name (see `cache ls`), --kind or --older-than")
        entries = self.entries()
        if self.names:
            entries = [_find(entries, name) for name in self.names]
        if self.older_than is not None:
            limit = time.time() - 86400 * self.older_than
            entries = [entry for entry in entries if entry.used < limit]
        _show(entries)
        if self.dry_run or not entries or not (self.yes or _confirm("remove these? [y/N] ")):
            return 0
        in_use = [entry for entry in entries if not _remove(entry)]
        for entry in in_use:
            console.print(f"in use: {entry.kind}/{entry.name}")
        console.print(f"removed {len(entries) - len(in_use)}")
        return 1 if in_use else 0


COMMAND = {"ls": ListCache, "rm": RemoveFromCache}


def _read(kind: str) -> Iterator[CacheEntry]:
    """The entries of a kind, in order of their names."""
    for path in sorted(home().glob(kind if kind in INDICES else f"{kind}/[!.]*")):
        if path.suffix == ".lock":
            continue
        with suppress(FileNotFoundError):  # removed by another process meanwhile
            files = [path, *path.rglob("*")]
            size = sum(file.stat().st_size for file in files if file.is_file())
            key = read_json_object(path / "key.json")
            about = f"{key['kind']}: {key['about']}" if key else {**KINDS, **INDICES}[kind]
            yield CacheEntry(kind, path.name, path, size, path.stat().st_mtime, about)


def _show(entries: Sequence[CacheEntry]) -> None:
    """Print a line for each entry, and the total."""
    rows = []
    for entry in entries:
        used = time.strftime("%Y-%m-%d %H:%M", time.localtime(entry.used))
        rows.append((entry.kind, entry.name, f"{_size(entry.size):>9}", used, entry.about))
    print_table(rows)
    console.print(f"{_size(sum(entry.size for entry in entries))} in {home()}")


def _confirm(question: str) -> bool:
    if not sys.stdin.isatty():
        raise UserError("cache rm asks first, and there is no terminal: give --yes or --dry-run")
    return input(question).strip().lower() in ("y", "yes")


def _remove(entry: CacheEntry) -> bool:
    """Remove an entry unless a process creates or uses it; returns whether it is removed."""
    from probes.features.store import remove_store

    path = entry.path
    if entry.kind == "features":
        return remove_store(path)
    # a training's checkpoint is under the lock of its weights
    lock = ("make", str(path.absolute()).removesuffix(".resume"))
    if entry.kind == "work":
        lock = ("cell", entry.name)
    with suppress(Timeout), locked(lock_path(*lock), wait=False), guard_removal(path) as is_free:
        if is_free and path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        elif is_free:
            path.unlink(missing_ok=True)
    return not path.exists()


def _find(entries: Sequence[CacheEntry], name: str) -> CacheEntry:
    """The entry of a name, ``KIND/NAME`` or unique prefix."""
    name = name.split("/")[-1]
    matches = [entry for entry in entries if entry.name == name]
    matches = matches or [entry for entry in entries if entry.name.startswith(name)]
    if len(matches) > 1:
        raise UserError(f"{len(matches)} cached entries begin with {name!r}; give a longer prefix")
    if not matches:
        hint = suggest(name, [entry.name for entry in entries])
        raise UserError(f"no cached entry {name!r}; {hint}")
    return matches[0]


def _size(count: int) -> str:
    return f"{count / 1e9:.2f} GB" if count >= 1e8 else f"{count / 1e6:.1f} MB"
