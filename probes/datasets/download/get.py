"""Fetch, check, unpack, and put in its place what ``data get`` was asked for."""

from __future__ import annotations

import filecmp
import shutil
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from pathlib import Path

from backbones.cliptex.protocols import Progress
from common.errors import UserError
from common.locks import lock_path, locked
from probes.datasets.download import fetch
from probes.datasets.download.archives import moved, whole
from probes.datasets.download.table import Archive, Entry

DOWNLOADS = ".downloads"  # below --to: archives until they are unpacked


def get(
    entry: Entry, to: Path, given: Sequence[Path], progress: Progress, say: Callable[[str], None]
) -> Path:
    """Bring ``entry`` to its folder below ``to``, whole or not at all; archives that have come are
    kept until then.

    Args:
        given: archives that are on this disk already (``--archive``); they stay as they are.
        say: takes lines for the user.
    Returns:
        The dataset's folder.
    Raises:
        UserError: an archive cannot be had, is not what it should be, or is no archive; no room;
            files are in the way.
    """
    entry.must_be_installed()
    downloads, target = to / DOWNLOADS / entry.name, to / entry.folder
    with locked(
        lock_path("get", str(downloads.absolute())),
        lambda: say("another process gets it; waiting for that"),
    ):
        must_be_free(target, entry.makes)
        files = collect(entry, downloads, target, assign(entry, given), progress, say)
        if files:
            staging = downloads / "unpacked"
            shutil.rmtree(staging, ignore_errors=True)
            try:
                staging.mkdir(parents=True)
                with whole(", ".join(map(str, files.values()))):
                    entry.unpack(files, staging, progress)
                if not any(staging.iterdir()):
                    raise UserError(
                        f"{', '.join(files)} alone make nothing; see the lines above for what is"
                        " missing"
                    )
                place(staging, target)
            finally:
                shutil.rmtree(staging, ignore_errors=True)
            shutil.rmtree(downloads, ignore_errors=True)
            with suppress(OSError):  # others are being got
                downloads.parent.rmdir()
    return target


def collect(
    entry: Entry,
    downloads: Path,
    target: Path,
    here: dict[str, Path],
    progress: Progress,
    say: Callable[[str], None],
) -> dict[str, Path]:
    """Name → place of every archive that is needed and can be had, checked, in the entry's order;
    those that are not ``here`` are fetched. Empty when the target has all."""
    wanted = []
    for each in entry.archives:
        if each.by_hand and each.name not in here:
            say(f"without {each.name}: {each.by_hand}, then pass --archive {each.name}")
        elif not (entry.unpack is moved and _size(target / each.name) == each.size):
            wanted.append(each)
    if not wanted and any(each.by_hand for each in entry.archives):
        raise UserError(
            f"{entry.name} can only be got by a person; see above, then pass --archive PATH"
        )
    coming = [
        each for each in wanted if each.name not in here and not (downloads / each.name).is_file()
    ]
    share = sum(each.size for each in wanted) / max(1, sum(each.size for each in entry.archives))
    there = sum(_size(part) for part in downloads.rglob("*.part"))
    fetch.must_have_room(
        downloads,
        sum(each.size for each in coming) - there + int(entry.unpacked * share),
        entry.name,
    )
    files = {}
    for each in wanted:
        file = files[each.name] = here.get(each.name, downloads / each.name)
        if each in coming:
            fetch.download(each.url, file, progress)
        verify(each, file, progress, say, ours=each.name not in here)
    return files


def _size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else -1


def assign(entry: Entry, given: Sequence[Path]) -> dict[str, Path]:
    """Which of the entry's archives each given file is: by its name; a single one of another name
    is the one that only a person can get. Raises ``UserError`` for a file that is not there or is
    none of them."""
    names = [archive.name for archive in entry.archives]
    here = {path.name: path for path in given if path.name in names}
    others = [path for path in given if path.name not in names]
    missing = [each.name for each in entry.archives if each.name not in here]
    by_hand = [each.name for each in entry.archives if each.by_hand and each.name not in here]
    for candidates in (by_hand, missing):
        if len(others) == len(candidates) == 1:
            here[candidates[0]] = others.pop()
    if others:
        raise UserError(
            f"--archive {others[0]}: {entry.name} is made of {', '.join(names)}; rename it to the"
            " one it is"
        )
    for path in here.values():
        if not path.is_file():
            raise UserError(f"--archive {path}: no such file")
    return here


def verify(
    archive: Archive, file: Path, progress: Progress, say: Callable[[str], None], ours: bool
) -> None:
    """Compare an archive with its published checksum, or say which it has. One of ours that is
    wrong is removed.

    Raises:
        UserError: it is not the published file.
    """
    algorithm, _, published = archive.checksum.partition(":")
    found = fetch.checksums(file, {"sha256"} | ({algorithm} if algorithm else set()), progress)
    if not algorithm:
        say(
            f"{archive.name}: sha256 {found['sha256']} (its source publishes none: keep it, and"
            " compare)"
        )
    elif found[algorithm] != published:
        if ours:
            file.unlink()
        mend = "it was removed; run the command again" if ours else "get it again"
        raise UserError(
            f"{file} is damaged or another version: {algorithm} {found[algorithm]} instead of"
            f" {published}; {mend}"
        )
    else:
        say(
            f"{archive.name}: {algorithm} {published} as published"
            + f", sha256 {found['sha256']}" * (algorithm != "sha256")
        )


def must_be_free(target: Path, names: Iterable[str]) -> None:
    """Raise ``UserError`` when one of these is in the folder ``target`` already."""
    if blocked := next((target / name for name in names if (target / name).exists()), None):
        raise UserError(
            f"{blocked} is there already, and would be mixed with what comes; move it away, or"
            " choose another --to (archives are kept)"
        )


def place(staging: Path, target: Path) -> None:
    """Move what was unpacked to the dataset's folder: by one rename where there is no such folder
    yet, else beside what is there.

    Raises:
        UserError: something is in the way that is not a file with the same bytes; nothing was moved
            then.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    if not target.exists():
        staging.replace(target)
        return
    new = [each for each in sorted(staging.iterdir()) if not _same(each, target / each.name)]
    must_be_free(target, [each.name for each in new])
    for each in new:
        each.replace(target / each.name)


def _same(one: Path, other: Path) -> bool:
    return one.is_file() and other.is_file() and filecmp.cmp(one, other, shallow=False)
