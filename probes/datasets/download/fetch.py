"""Download a file by HTTP, resuming an interrupted download, and compute its checksum."""

from __future__ import annotations

import hashlib
import http.client
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

from cliptex_common.errors import DISK_FULL, UserError
from cliptex_common.progress import Progress
from probes.features.budget import free_bytes

BLOCK = 1 << 20  # bytes at a time
MB = 1e6
TIMEOUT = 60.0  # seconds without a byte
WAITS = (1.0, 5.0, 20.0)  # seconds before the next attempts; from the start after any progress
TRANSIENT = (408, 425, 429)  # and 5xx


def download(url: str, path: Path, progress: Progress) -> None:
    """Download ``url`` to ``path``; until it is complete, what has come is in ``path.part``.

    Raises:
        UserError: there is no such file, or the server does not answer after four attempts.
    """
    part = path.with_name(f"{path.name}.part")
    part.parent.mkdir(parents=True, exist_ok=True)
    waits = iter(WAITS)
    while True:
        size = file_size(part)
        try:
            _receive(url, part, progress)
            part.replace(path)
            return
        except urllib.error.HTTPError as error:
            reason = f"{error.code} {error.reason}"
            if error.code < 500 and error.code not in TRANSIENT:
                raise UserError(
                    f"cannot download {url}: {reason}; get {path.name} by other means and pass"
                    " --archive PATH"
                ) from error
        except (OSError, http.client.HTTPException) as error:
            if isinstance(error, OSError) and error.errno in DISK_FULL:
                raise
            reason = str(error) or type(error).__name__
        if file_size(part) > size:
            waits = iter(WAITS)
        if (wait := next(waits, None)) is None:
            raise UserError(
                f"{url} does not answer ({reason}); run the command again to resume after"
                f" {file_size(part) / MB:.0f} MB"
            )
        time.sleep(wait)


def _receive(url: str, part: Path, progress: Progress) -> None:
    """Append what is missing in one request. A server without ranges sends all of it again."""
    done = file_size(part)
    headers = {"User-Agent": "cliptex-benchmark"}
    if done:
        headers["Range"] = f"bytes={done}-"
    try:
        response = urllib.request.urlopen(
            urllib.request.Request(url, headers=headers), timeout=TIMEOUT
        )
    except urllib.error.HTTPError as error:
        if error.code == 416:  # nothing comes after what is there
            return
        raise
    with response:
        if response.status != 206:
            done = 0
        total = done + int(response.headers.get("Content-Length", 0))
        with part.open("ab" if done else "wb") as file:
            for block in blocks(response.read, part.stem, done, total, progress):
                file.write(block)
    if file_size(part) < total:
        raise ConnectionError("the connection ended early")


def file_size(path: Path) -> int:
    """Bytes of a file, 0 if there is none."""
    return path.stat().st_size if path.is_file() else 0


def blocks(
    read: Callable[[int], bytes], about: str, done: int, total: int, progress: Progress
) -> Iterator[bytes]:
    """What is left to read of ``total`` bytes, with a bar in MB that begins at ``done``."""
    progress.start(f"{about}, MB", max(1, round(total / MB)))
    shown = 0
    while True:
        if steps := int(done / MB) - shown:
            progress.advance(steps)
            shown += steps
        if not (block := read(BLOCK)):
            return
        yield block
        done += len(block)


def require_space(folder: Path, size: int, about: str) -> None:
    """Raise ``UserError`` if ``size`` bytes do not fit on the disk of ``folder``."""
    if (free := free_bytes(folder.absolute())) < size:
        raise UserError(
            f"{about} needs {size / 1e9:.1f} GB in {folder}, where {free / 1e9:.1f} GB are free; "
            "free some space or choose another folder with --to"
        )


def checksum(path: Path, algorithm: str, progress: Progress) -> str:
    """Hex digest of a file by ``sha256``, ``sha1`` or ``md5``."""
    digest = hashlib.new(algorithm, usedforsecurity=False)
    with path.open("rb") as file:
        for block in blocks(file.read, f"checking {path.name}", 0, file_size(path), progress):
            digest.update(block)
    return digest.hexdigest()
