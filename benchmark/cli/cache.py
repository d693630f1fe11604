"""``cache ls``, ``cache rm`` and ``cache check``: the big things under ``$CLIPTEX_HOME``, which can
all be made again."""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from benchmark.cli.options import FLAG, add, gave_json, number
from benchmark.cli.parser import add_command, add_commands, with_examples
from benchmark.execution.progress import Bar, console
from common.errors import UserError, nearest
from common.files import home
from common.locks import guard_removal, lock_path, locked
from probes.features.budget import gigabytes, last_used, size_limit

# folder under the home → what each thing in it is
KINDS = {
    "features": "encoded features",
    "mini": "worlds",
    "experts": "experts",
    "labels": "pseudo-labels",
    "weights": "backbones' weights",
    "work": "unfinished cells",
}
say = partial(console.print, markup=False)


@dataclass(frozen=True)
class CacheEntry:
    """One thing that is cached: ``name`` is what ``rm`` takes, ``used`` is in seconds since the
    epoch."""

    kind: str
    name: str
    path: Path
    size: int
    used: float
    about: str


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of ``cache``."""
    with_examples(parser, "ls", "rm --kind features --older-than 30 --dry-run")
    commands = add_commands(parser, "what")
    examples = "--json", "--kind features"
    ls = add_command(commands, "ls", "what is cached, how big, when it was used last", *examples)
    about = (
        "remove what is named (a beginning that is unique will do), or all of a kind; shows it and"
        " asks"
    )
    rm = add_command(commands, "rm", about, "3f2a", "--kind features --older-than 30 --yes")
    about = "whether every byte of features, labels and weights is as it was written"
    check = add_command(commands, "check", about, "", "--kind labels")
    for command in (ls, rm, check):
        command.add_argument(
            "--kind", choices=KINDS, help=f"only these: {', '.join(KINDS)}", metavar="KIND"
        )
    add(ls, "--json")
    rm.add_argument("names", nargs="*", metavar="NAME", help="see `cache ls`")
    about = "only what was not used for so many days"
    rm.add_argument("--older-than", type=number(0, kind=float), metavar="DAYS", help=about)
    rm.add_argument("--yes", **FLAG, help="do not ask")
    add(rm, "--dry-run")


def main(options: argparse.Namespace) -> int:
    """Exit code 1 when ``check`` finds damage or ``rm`` could not remove something."""
    paths = [
        path
        for kind in KINDS
        if options.kind in (None, kind)
        for path in (home() / kind).glob("[!.]*")
    ]
    things = [_entry(path) for path in paths if path.suffix != ".lock"]
    things.sort(key=lambda one: (list(KINDS).index(one.kind), -one.size, one.name))
    return {"ls": ls, "rm": rm, "check": check}[options.what](things, options)


def _entry(path: Path) -> CacheEntry:
    kind, size = path.parent.name, 0
    for file in (path, *(() if path.is_symlink() else path.rglob("*"))):  # a link is its own size
        with suppress(OSError):  # it may be going while we look
            size += file.lstat().st_size * file.is_file()
    return CacheEntry(
        kind,
        path.name,
        path,
        size,
        last_used(path) or path.lstat().st_mtime,
        _about(path) or KINDS[kind],
    )


def _about(path: Path) -> str:
    """What a store of features holds, as its manifest (or, while it is being made, its key)
    says."""
    for name in ("manifest.json", "key.json"):
        with suppress(OSError, ValueError, KeyError, TypeError):
            content = json.loads((path / name).read_text(encoding="utf-8"))
            return f"{content['kind']}: {content['about']}" + (
                "" if name == "manifest.json" else " (unfinished)"
            )
    return ""


def ls(things: Sequence[CacheEntry], options: argparse.Namespace) -> int:
    """A line each, and the sum."""
    from probes.features.store import root

    if gave_json(options, [vars(one) for one in things]):
        return 0
    names = {
        one: one.name[:12] if one.kind == "features" else one.name for one in things
    }  # a unique beginning will do
    width = max(map(len, names.values()), default=0)
    for one in things:
        when = time.strftime("%Y-%m-%d %H:%M", time.localtime(one.used))
        say(f"{one.kind:<9} {names[one]:<{width}} {gigabytes(one.size):>9}  {when}  {one.about}")
    total, features = (
        sum(one.size for one in things if one.kind in kinds) for kinds in (KINDS, ("features",))
    )
    most = gigabytes(size_limit(root()))
    say(f"{gigabytes(total)} in {home()}; features {gigabytes(features)} of at most {most}")
    return 0


def rm(things: Sequence[CacheEntry], options: argparse.Namespace) -> int:
    """Remove, or say what is in use."""
    if not options.names and options.kind is None and options.older_than is None:
        raise UserError("say what to remove: names (see `cache ls`), --kind or --older-than")
    chosen = [_named(things, name) for name in options.names] if options.names else things
    if options.older_than is not None:
        chosen = [one for one in chosen if one.used < time.time() - 86400 * options.older_than]
    if not chosen:
        say("nothing to remove")
        return 0
    free = {one: remove(one, dry_run=True) for one in chosen}
    for one, is_free in free.items():
        told = f"{one.kind}/{one.name} ({gigabytes(one.size)}; {one.about})"
        say(f"would remove {told}" if is_free else f"{one.kind}/{one.name} is in use and stays")
    if not options.dry_run and any(free.values()):
        size = gigabytes(sum(one.size for one, is_free in free.items() if is_free))
        if not options.yes and not _agreed(f"remove {sum(free.values())} of these, {size}? [y/N] "):
            say("nothing was removed")
            return 0
        gone = [remove(one) for one, is_free in free.items() if is_free]
        stay = (
            f"; {gone.count(False)} stay: in use by now, or not to be removed by you"
            if not all(gone)
            else ""
        )
        say(f"removed {sum(gone)}{stay}")
        return 0 if all(gone) and all(free.values()) else 1
    return 0 if all(free.values()) else 1


def _agreed(question: str) -> bool:
    """Whether somebody at the terminal says yes. Raises ``UserError`` where nobody can be asked."""
    if sys.stdin is None or not sys.stdin.isatty():
        raise UserError(
            "cache rm asks first, and nobody is at this terminal: give --yes, or --dry-run to look"
        )
    try:
        return input(question).strip().lower() in ("y", "yes")
    except EOFError:
        return False


def remove(one: CacheEntry, dry_run: bool = False) -> bool:
    """Whether it is gone, or with ``dry_run`` would be; what a process makes or uses stays."""
    from filelock import Timeout

    from probes.features import store

    if one.kind == "features" and (dry_run or not one.path.is_symlink()):
        return not store.in_use(one.path) if dry_run else store.remove(one.path)
    # what a training goes on from is under the lock of its weights
    lock = (
        ("cell", one.name)
        if one.kind == "work"
        else ("make", str(one.path.absolute()).removesuffix(".resume"))
    )
    with (
        suppress(Timeout),
        locked(lock_path(*lock), wait=False),
        guard_removal(one.path) as is_free,
    ):
        if dry_run or not is_free:
            return is_free
        if one.path.is_dir() and not one.path.is_symlink():  # what a link leads to is not ours
            shutil.rmtree(one.path, ignore_errors=True)
        else:
            one.path.unlink(missing_ok=True)
    return not (dry_run or one.path.exists() or one.path.is_symlink())


def check(things: Sequence[CacheEntry], options: argparse.Namespace) -> int:
    """One line for each thing that is not complete."""
    things = [one for one in things if one.kind in ("features", "labels", "weights")]
    wrong: list[str] = []
    with Bar() as bar:
        bar.start("checking", len(things))
        for one in things:
            wrong += [f"{one.kind}/{one.name}: {reason}" for reason in problems(one)]
            bar.advance()
    for line in wrong:
        say(line, style="red")
    if wrong:
        say(
            "damaged features are made again when they are next asked for; `cache rm` removes the"
            " rest"
        )
    else:
        say(f"{len(things)} things are complete")
    return 1 if wrong else 0


def problems(one: CacheEntry) -> Sequence[str]:
    """What is wrong with one thing; every byte is read."""
    from backbones.checkpoint import load_checkpoint
    from backbones.cliptex.labels.store import check_labels
    from probes.features.store import integrity_error, read_manifest

    if one.kind == "features":
        manifest = read_manifest(one.path)
        if manifest is None:
            return ["not finished: another process is making it, or was killed while it did"]
        return [error] if (error := integrity_error(one.path, manifest)) else []
    try:
        if one.kind == "labels":
            return check_labels(one.path)
        if one.path.suffix in (".safetensors", ".pt", ".pth"):
            load_checkpoint(one.path)
    except UserError as error:
        return [str(error)]
    return []


def _named(things: Sequence[CacheEntry], name: str) -> CacheEntry:
    wanted = name.split("/")[-1]
    found = [one for one in things if one.name == wanted] or [
        one for one in things if one.name.startswith(wanted)
    ]
    if len(found) > 1:
        raise UserError(f"{len(found)} cached things begin with {wanted!r}; write more of the name")
    if not found:
        raise UserError(
            f"nothing cached is called {wanted!r}; {nearest(wanted, [one.name for one in things])}"
        )
    return found[0]
