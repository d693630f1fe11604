"""``cache ls``, ``cache rm`` and ``cache check``: the big things under ``$CLIPTEX_HOME``, which can all be made again."""

from __future__ import annotations

import argparse
import json
import shutil
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

# folder under the home → what each thing in it is
KINDS = {
    "features": "encoded features",
    "mini": "worlds",
    "experts": "experts",
    "labels": "pseudo-labels",
    "weights": "backbones' weights",
    "work": "unfinished cells",
}


@dataclass(frozen=True)
class Kept:
    """One thing that is kept: ``name`` is what ``rm`` takes, ``used`` is in seconds since the epoch."""

    kind: str
    name: str
    path: Path
    size: int
    used: float
    about: str


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of ``cache``."""
    commands = parser.add_subparsers(dest="what", required=True)
    ls = commands.add_parser("ls", help="what is kept, how big, when it was used last")
    ls.add_argument("--json", action="store_true", help="as JSON")
    rm = commands.add_parser("rm", help="remove what is named (a beginning that is unique will do), or all of a kind")
    check = commands.add_parser("check", help="is every byte of features, labels and weights as it was written?")
    for command in (ls, rm, check):
        command.add_argument("--kind", choices=KINDS, help="only these")
    rm.add_argument("names", nargs="*", metavar="NAME")
    rm.add_argument("--older-than", type=float, metavar="DAYS", help="only what was not used for so many days")


def main(options: argparse.Namespace) -> int:
    """Exit code 1 when ``check`` finds damage or ``rm`` could not remove something."""
    return {"ls": ls, "rm": rm, "check": check}[options.what](options)


def kept(kind: str | None = None) -> list[Kept]:
    """Everything that is kept, or that of one kind, the biggest first within each."""
    from backbones.files import home
    from probes.features.budget import last_used

    found = []
    for folder, about in KINDS.items():
        if kind not in (None, folder) or not (home() / folder).is_dir():
            continue
        paths = [p for p in (home() / folder).iterdir() if not p.name.startswith(".") and p.suffix != ".lock"]
        each = [
            Kept(folder, path.name, path, size_of(path), last_used(path) or path.stat().st_mtime, _about(path) or about)
            for path in paths
        ]
        found += sorted(each, key=lambda one: (-one.size, one.name))
    return found


def ls(options: argparse.Namespace) -> int:
    """A line each, and the sum."""
    from backbones.files import home
    from benchmark.execution.progress import console
    from probes.features.budget import budget, gigabytes
    from probes.features.store import root

    things = kept(options.kind)
    if options.json:
        rows = [{**vars(one), "path": str(one.path)} for one in things]
        console.print(json.dumps(rows, indent=2), markup=False)
        return 0
    names = {one: one.name[:12] if one.kind == "features" else one.name for one in things}  # a unique beginning will do
    width = max(map(len, names.values()), default=0)
    for one in things:
        when = time.strftime("%Y-%m-%d %H:%M", time.localtime(one.used))
        row = f"{one.kind:<9} {names[one]:<{width}} {gigabytes(one.size):>9}  {when}  {one.about}"
        console.print(row, markup=False)
    total = sum(one.size for one in things)
    features = sum(one.size for one in things if one.kind == "features")
    console.print(
        f"{gigabytes(total)} in {home()}; features {gigabytes(features)} of at most {gigabytes(budget(root()))}",
        markup=False,
    )
    return 0


def rm(options: argparse.Namespace) -> int:
    """Remove, or say what is in use."""
    from backbones.errors import UserError
    from benchmark.execution.progress import console
    from probes.features.budget import gigabytes

    things = kept(options.kind)
    if not options.names and options.kind is None and options.older_than is None:
        raise UserError("say what to remove: names (see `cache ls`), --kind or --older-than")
    chosen = [_named(things, name) for name in options.names] if options.names else things
    if options.older_than is not None:
        chosen = [one for one in chosen if one.used < time.time() - 86400 * options.older_than]
    busy = 0
    for one in chosen:
        if remove(one):
            console.print(f"removed {one.kind}/{one.name} ({gigabytes(one.size)})", markup=False)
        else:
            busy += 1
            console.print(f"{one.kind}/{one.name} is in use and stays", style="yellow", markup=False)
    if not chosen:
        console.print("nothing to remove")
    return 1 if busy else 0


def remove(one: Kept) -> bool:
    """Whether it is gone; what a process makes stays, and features that one uses."""
    from filelock import Timeout

    from backbones.locks import lock_file, locked
    from probes.features import store

    if one.kind == "features":
        return store.remove(one.path)
    made = str(one.path.absolute()).removesuffix(
        ".resume"
    )  # what a training goes on from is under the lock of its weights
    locks = {"work": ("cell", one.name), "mini": ("world", one.name)}
    try:
        with locked(lock_file(*locks.get(one.kind, ("make", made))), wait=False):
            if one.path.is_dir():
                shutil.rmtree(one.path, ignore_errors=True)
            else:
                one.path.unlink(missing_ok=True)
    except Timeout:
        return False
    return not one.path.exists()


def check(options: argparse.Namespace) -> int:
    """One line for each thing that is not whole."""
    from benchmark.execution.progress import Bar, console

    things = [one for one in kept(options.kind) if one.kind in ("features", "labels", "weights")]
    wrong: list[str] = []
    with Bar() as bar:
        bar.start("checking", len(things))
        for one in things:
            wrong += [f"{one.kind}/{one.name}: {reason}" for reason in problems(one)]
            bar.advance()
    for line in wrong:
        console.print(line, style="red", markup=False)
    if wrong:
        console.print("damaged features are made again when they are next asked for; `cache rm` removes the rest")
    else:
        console.print(f"{len(things)} things are whole")
    return 1 if wrong else 0


def problems(one: Kept) -> Sequence[str]:
    """What is wrong with one thing; every byte is read."""
    from backbones.checkpoint import read_checkpoint
    from backbones.cliptex.labels import check_labels
    from backbones.errors import UserError
    from probes.features.store import read_manifest, verify

    if one.kind == "features":
        manifest = read_manifest(one.path)
        if manifest is None:
            return ["not finished: another process is making it, or was killed while it did"]
        return list(verify(one.path, manifest, full=True).values())
    if one.kind == "labels":
        return check_labels(one.path)
    if one.path.suffix not in (".safetensors", ".pt", ".pth"):
        return []
    try:
        read_checkpoint(one.path)
    except UserError as error:
        return [str(error)]
    return []


def size_of(path: Path) -> int:
    """Bytes of a file, or of all files of a folder."""
    if path.is_file():
        return path.stat().st_size
    total = 0
    for file in path.rglob("*"):
        with suppress(OSError):  # it may be going while we look
            total += file.lstat().st_size if not file.is_dir() else 0
    return total


def _named(things: Sequence[Kept], name: str) -> Kept:
    from backbones.errors import UserError, nearest

    wanted = name.split("/")[-1]
    found = [one for one in things if one.name == wanted] or [one for one in things if one.name.startswith(wanted)]
    if len(found) != 1:
        known = [one.name for one in things]
        raise UserError(
            f"{len(found)} kept things begin with {wanted!r}; write more of the name"
            if found
            else f"nothing kept is called {wanted!r}; {nearest(wanted, known)}"
        )
    return found[0]


def _about(path: Path) -> str:
    """What a store of features holds, as its manifest (or, while it is being made, its recipe) says."""
    for name in ("manifest.json", "key.json"):
        with suppress(OSError, ValueError, KeyError, TypeError):
            content = json.loads((path / name).read_text(encoding="utf-8"))
            return f"{content['kind']}: {content['about']}" + ("" if name == "manifest.json" else " (unfinished)")
    return ""
