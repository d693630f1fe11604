"""Download, verify and unpack the archives of a dataset into its folder."""

from __future__ import annotations

import filecmp
import shutil
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from pathlib import Path

from cliptex_common.errors import UserError
from cliptex_common.locks import lock_path, locked
from cliptex_common.progress import Progress
from probes.datasets.download import fetch
from probes.datasets.download.table import Archive, Download

DOWNLOADS = ".downloads"  # below --to: archives until they are unpacked


def get(
    entry: Download,
    to: Path,
    archives: Sequence[Path],
    progress: Progress,
    log: Callable[[str], None],
) -> Path:
    """Get ``entry`` into its folder below ``to``, completely or not at all; downloaded archives are
    kept until then.

    Args:
        archives: that are on this disk already (``--archive``); they are not changed.
        log: takes lines for the user.
    Returns:
        The dataset's folder.
    Raises:
        UserError: an archive cannot be downloaded, has another checksum or is no archive; the disk
            is too small; files are in the way.
    """
    entry.require_package()
    downloads, target = to / DOWNLOADS / entry.name, to / entry.folder
    with locked(
        lock_path("get", str(downloads.absolute())),
        lambda: log(f"waiting for the process that downloads {entry.name}"),
    ):
        require_absent(target, entry.creates)
        files = collect(entry, downloads, match_archives(entry, archives), progress, log)
        staging = downloads / "unpacked"
        shutil.rmtree(staging, ignore_errors=True)
        try:
            staging.mkdir(parents=True)
            progress.start(f"unpacking {entry.name}", 1)
            entry.unpack(files, staging)
            progress.advance()
            if not any(staging.iterdir()):
                raise UserError(f"{', '.join(files)} alone is not enough; pass the other archives")
            move_into(staging, target)
        finally:
            shutil.rmtree(staging, ignore_errors=True)
        shutil.rmtree(downloads, ignore_errors=True)
        with suppress(OSError):  # other downloads are in it
            downloads.parent.rmdir()
    return target


def collect(
    entry: Download,
    downloads: Path,
    local: dict[str, Path],
    progress: Progress,
    log: Callable[[str], None],
) -> dict[str, Path]:
    """Name → path of the verified archives, in the entry's order; those not in ``local`` are
    downloaded. Manual ones may be missing, but not all."""
    archives = []
    for archive in entry.archives:
        if archive.manual and archive.name not in local:
            log(f"without {archive.name}: {archive.manual}, then pass --archive {archive.name}")
        else:
            archives.append(archive)
    if not archives:
        raise UserError(f"{entry.name} needs manual downloads; see above, then pass --archive PATH")
    paths = {each.name: local.get(each.name, downloads / each.name) for each in archives}
    pending = [archive for archive in archives if not paths[archive.name].is_file()]
    size = sum(archive.size for archive in pending)
    size -= sum(fetch.file_size(part) for part in downloads.glob("*.part"))
    share = sum(each.size for each in archives) / max(1, sum(each.size for each in entry.archives))
    fetch.require_space(downloads, size + int(entry.unpacked * share), entry.name)
    for archive in archives:
        path = paths[archive.name]
        if archive in pending:
            fetch.download(archive.url, path, progress)
        check_archive(archive, path, progress, log, delete=archive.name not in local)
    return paths


def match_archives(entry: Download, paths: Sequence[Path]) -> dict[str, Path]:
    """Archive name → given file: by its name; a single file of another name is the one archive that
    is missing. Raises ``UserError`` for a file that matches none or does not exist."""
    names = [archive.name for archive in entry.archives]
    local = {path.name: path for path in paths if path.name in names}
    unmatched = [path for path in paths if path.name not in names]
    missing = [archive for archive in entry.archives if archive.name not in local]
    for candidates in ([archive for archive in missing if archive.manual], missing):
        if len(unmatched) == len(candidates) == 1:
            local[candidates[0].name] = unmatched.pop()
    if unmatched:
        raise UserError(
            f"--archive {unmatched[0]}: {entry.name} is made of {', '.join(names)}; rename it to"
            " one of these"
        )
    for path in local.values():
        if not path.is_file():
            raise UserError(f"--archive {path}: no such file")
    return local


def check_archive(
    archive: Archive, path: Path, progress: Progress, log: Callable[[str], None], delete: bool
) -> None:
    """Compare an archive with its published checksum, or log its sha256 if there is none.

    Raises:
        UserError: it is another file, which is deleted if ``delete``.
    """
    algorithm, _, published = archive.checksum.partition(":")
    digest = fetch.checksum(path, algorithm or "sha256", progress)
    if not algorithm:
        log(f"{archive.name}: sha256 {digest} (its source publishes no checksum)")
    elif digest == published:
        log(f"{archive.name}: {algorithm} {digest} as published")
    else:
        if delete:
            path.unlink()
        action = "it is deleted; run the command again" if delete else "get it again"
        raise UserError(
            f"{path} is damaged or another version: {algorithm} {digest} instead of {published};"
            f" {action}"
        )


def require_absent(target: Path, names: Iterable[str]) -> None:
    """Raise ``UserError`` if one of these exists in the folder ``target``."""
    if existing := next((target / name for name in names if (target / name).exists()), None):
        raise UserError(
            f"{existing} exists; move it away, or choose another --to (downloaded archives are"
            " kept)"
        )


def move_into(staging: Path, target: Path) -> None:
    """Move the unpacked files to the dataset's folder, by one rename if it does not exist yet.

    Raises:
        UserError: another file or folder of the same name exists; nothing is moved then.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    if not target.exists():
        staging.replace(target)
        return
    names = sorted(path.name for path in staging.iterdir())
    equal, _, _ = filecmp.cmpfiles(staging, target, names, shallow=False)
    new = [name for name in names if name not in equal]
    require_absent(target, new)
    for name in new:
        (staging / name).replace(target / name)
