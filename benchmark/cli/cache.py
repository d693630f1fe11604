"""``cache ls`` and ``cache rm``: reusable artifacts under ``$CLIPTEX_HOME``."""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from filelock import Timeout

from benchmark.cli.options import FLAG, add, number, output_json
from benchmark.cli.parser import add_command, add_commands, with_examples
from benchmark.execution.progress import console
from common.errors import UserError, nearest
from common.files import home
from common.locks import guard_removal, lock_path, locked

# folder under $CLIPTEX_HOME → what each entry is
KINDS = {
    "features": "encoded features",
    "mini": "rendered world",
    "experts": "expert",
    "labels": "pseudo-labels",
    "weights": "backbone weights",
    "work": "unfinished cell",
}


@dataclass(frozen=True)
class CacheEntry:
    """One file or folder: ``rm`` takes its ``name``; ``used`` is in seconds since the epoch."""

    kind: str
    name: str
    path: Path
    size: int
    used: float
    about: str

    def __str__(self) -> str:
        return f"{self.kind}/{self.name} ({_size(self.size)}; {self.about})"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of ``cache``."""
    with_examples(parser, "ls", "rm --kind features --older-than 30 --dry-run")
    commands = add_commands(parser, "what")
    about = "list what is cached, its size and when it was last used"
    ls = add_command(commands, "ls", about, "--json", "--kind features")
    about = "remove entries by name (a unique prefix suffices), kind or age; asks first"
    rm = add_command(commands, "rm", about, "3f2a", "--kind features --older-than 30 --yes")
    for command in (ls, rm):
        command.add_argument(
            "--kind", choices=[*KINDS], metavar="KIND", help=f"only these: {', '.join(KINDS)}"
        )
    add(ls, "--json")
    rm.add_argument("names", nargs="*", metavar="NAME", help="see `cache ls`")
    rm.add_argument(
        "--older-than",
        type=number(0, kind=float),
        metavar="DAYS",
        help="only entries that were not used for so many days",
    )
    rm.add_argument("--yes", **FLAG, help="do not ask")
    add(rm, "--dry-run")


def main(options: argparse.Namespace) -> int:
    """Exit code 1 if an entry to be removed is in use."""
    entries = [entry for kind in KINDS if options.kind in (None, kind) for entry in _read(kind)]
    return {"ls": ls, "rm": rm}[options.what](entries, options)


def _read(kind: str) -> Iterator[CacheEntry]:
    """The entries of a kind, in order of their names."""
    for path in sorted((home() / kind).glob("[!.]*")):
        if path.suffix != ".lock":
            with suppress(FileNotFoundError):  # removed by another process meanwhile
                yield _describe(kind, path)


def _describe(kind: str, path: Path) -> CacheEntry:
    files = [path, *path.rglob("*")]
    size = sum(file.stat().st_size for file in files if file.is_file())
    # features: the file that every use touches, and a manifest (while it is built, a key)
    used = next((path / name for name in ("used", "") if (path / name).exists()), path)
    about = KINDS[kind]
    for name in ("key.json", "manifest.json"):
        with suppress(OSError, ValueError, KeyError, TypeError):
            content = json.loads((path / name).read_text(encoding="utf-8"))
            about = f"{content['kind']}: {content['about']}"
    return CacheEntry(kind, path.name, path, size, used.stat().st_mtime, about)


def ls(entries: Sequence[CacheEntry], options: argparse.Namespace) -> int:
    """Print a line for each entry, and the total."""
    if output_json(options, [vars(entry) for entry in entries]):
        return 0
    width = max((len(entry.name) for entry in entries), default=0)
    for entry in entries:
        used = time.strftime("%Y-%m-%d %H:%M", time.localtime(entry.used))
        size = _size(entry.size)
        console.print(f"{entry.kind:<9} {entry.name:<{width}} {size:>9}  {used}  {entry.about}")
    console.print(f"{_size(sum(entry.size for entry in entries))} in {home()}")
    return 0


def rm(entries: Sequence[CacheEntry], options: argparse.Namespace) -> int:
    """Show what will be removed, ask, remove it."""
    if not options.names and options.kind is None and options.older_than is None:
        raise UserError("choose entries by name (see `cache ls`), --kind or --older-than")
    if options.names:
        entries = [_find(entries, name) for name in options.names]
    if options.older_than is not None:
        limit = time.time() - 86400 * options.older_than
        entries = [entry for entry in entries if entry.used < limit]
    unused = [entry for entry in entries if remove(entry, dry_run=True)]
    for entry in entries:
        note = "would remove" if entry in unused else "in use:"
        console.print(f"{note} {entry}")
    if unused and not options.dry_run:
        size = _size(sum(entry.size for entry in unused))
        if not options.yes and not _confirm(f"remove {len(unused)} of these, {size}? [y/N] "):
            return 0
        unused = [entry for entry in unused if remove(entry)]
        console.print(f"removed {len(unused)}")
    return 0 if len(unused) == len(entries) else 1


def _confirm(question: str) -> bool:
    if not sys.stdin.isatty():
        raise UserError("cache rm asks first, and there is no terminal: give --yes or --dry-run")
    return input(question).strip().lower() in ("y", "yes")


def remove(entry: CacheEntry, dry_run: bool = False) -> bool:
    """Remove an entry unless a process creates or uses it; whether it was (or can be) removed."""
    from probes.features import store

    if entry.kind == "features":
        return not store.in_use(entry.path) if dry_run else store.remove(entry.path)
    # a training's checkpoint is under the lock of its weights
    lock = ("make", str(entry.path.absolute()).removesuffix(".resume"))
    if entry.kind == "work":
        lock = ("cell", entry.name)
    with suppress(Timeout), locked(lock_path(*lock), wait=False), guard_removal(entry.path) as free:
        if dry_run or not free:
            return free
        if entry.path.is_dir():
            shutil.rmtree(entry.path, ignore_errors=True)
        else:
            entry.path.unlink(missing_ok=True)
        return not entry.path.exists()
    return False


def _find(entries: Sequence[CacheEntry], name: str) -> CacheEntry:
    """The entry of a name, ``KIND/NAME`` or unique prefix."""
    name = name.split("/")[-1]
    matches = [entry for entry in entries if entry.name == name]
    matches = matches or [entry for entry in entries if entry.name.startswith(name)]
    if len(matches) > 1:
        raise UserError(f"{len(matches)} cached entries begin with {name!r}; give a longer prefix")
    if not matches:
        hint = nearest(name, [entry.name for entry in entries])
        raise UserError(f"no cached entry {name!r}; {hint}")
    return matches[0]


def _size(count: int) -> str:
    return f"{count / 1e9:.2f} GB" if count >= 1e8 else f"{count / 1e6:.1f} MB"
