"""A file by HTTP, resumed where an earlier attempt was cut short, and its checksum."""

from __future__ import annotations

import hashlib
import http.client
import re
import shutil
import time
import urllib.error
import urllib.request
from collections.abc import Iterable
from email.message import Message
from pathlib import Path
from urllib.parse import urlsplit

from backbones.cliptex.protocols import Progress
from common.errors import DISK_FULL, UserError
from common.files import read_json_object, write_json

BLOCK = 1 << 20  # bytes at a time
MB = 1e6
PATIENCE = 60.0  # seconds without a byte after which a connection is given up
WAITS = (
    1.0,
    5.0,
    20.0,
)  # seconds before a request is made again; counted anew whenever bytes have come
PASSING = (408, 425, 429)  # what a server answers that may answer otherwise later; besides 5xx


def open_url(url: str, headers: dict[str, str] | None = None) -> http.client.HTTPResponse:
    """The answer to a GET; redirections are followed. Raises ``urllib.error.HTTPError`` and
    ``OSError``."""
    asked = {"User-Agent": "cliptex-benchmark", "Accept-Encoding": "identity", **(headers or {})}
    answer = urllib.request.urlopen(urllib.request.Request(url, headers=asked), timeout=PATIENCE)
    assert isinstance(answer, http.client.HTTPResponse), "only http:// and https:// are asked for"
    return answer


def download(url: str, file: Path, progress: Progress) -> None:
    """Bring ``url`` to ``file``. What has come lies in ``file.part`` until it is all there; a later
    call goes on from it, if the server still has the same file.

    Raises:
        UserError: it is not there, the server does not answer (after four attempts without a byte),
            or there is no room.
    """
    part = file.with_name(f"{file.name}.part")
    part.parent.mkdir(parents=True, exist_ok=True)
    waits = iter(WAITS)
    while True:
        before = _size(part)
        try:
            if _receive(url, part, progress):
                part.replace(file)
                _about(part).unlink(missing_ok=True)
                return
            reason = "the connection ended early"
        except urllib.error.HTTPError as error:
            reason = f"{error.code} {error.reason}"
            if error.code < 500 and error.code not in PASSING:
                raise UserError(
                    f"{url} cannot be had: {reason}; get {file.name} by other means and pass"
                    " --archive PATH"
                ) from error
        except (OSError, http.client.HTTPException) as error:
            if isinstance(error, OSError) and error.errno in DISK_FULL:
                raise
            reason = str(getattr(error, "reason", "") or error) or type(error).__name__
        if _size(part) > before:
            waits = iter(WAITS)
        if (wait := next(waits, None)) is None:
            raise UserError(
                f"{url} does not answer ({reason}); run the command again, it goes on after"
                f" {_size(part) / MB:.0f} MB"
            )
        time.sleep(wait)


def _receive(url: str, part: Path, progress: Progress) -> bool:
    """One attempt to append what is missing; whether all is there now."""
    have, known = _size(part), read_json_object(_about(part))
    headers = {}
    if known.get("url") != url or not have:
        have = 0
    elif have == known.get("size"):
        return True
    else:
        headers = {"Range": f"bytes={have}-"}
        if known.get("version"):
            headers["If-Range"] = known["version"]  # another version comes from its beginning
    try:
        answer = open_url(url, headers)
    except urllib.error.HTTPError as error:
        if error.code == 416:  # what we have is longer than what is there
            part.unlink()
            return False
        raise
    with answer:
        found = (
            re.match(r"bytes (\d+)-", answer.headers.get("Content-Range", ""))
            if answer.status == 206
            else None
        )
        if not found or int(found[1]) != have:
            have = 0
            if answer.status == 206:
                part.unlink()
                return False
        length = answer.headers.get("Content-Length", "")
        total = have + int(length) if length.isdecimal() else 0
        must_have_room(part.parent, total - have, f"the rest of {part.stem}")
        write_json(_about(part), {"url": url, "version": _version(answer.headers), "size": total})
        bar = Megabytes(progress, part.stem, total)
        bar.reach(have)
        with part.open("ab" if have else "wb") as file:
            while data := answer.read(BLOCK):
                file.write(data)
                have += len(data)
                bar.reach(have)
    return not total or have == total


def _version(headers: Message) -> str:
    """What ``If-Range`` takes: a strong ETag, or else the date of the last change."""
    etag = headers.get("ETag", "")
    return etag if etag.startswith('"') else headers.get("Last-Modified", "")


def _about(part: Path) -> Path:
    return part.with_name(f"{part.name}.json")


def _size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else 0


class Megabytes:
    """Progress of a number of bytes, told in MB."""

    def __init__(self, progress: Progress, what: str, total: int) -> None:
        self._progress, self._done = progress, 0
        progress.start(f"{what}, MB", max(1, round(total / MB)))

    def reach(self, done: int) -> None:
        """``done`` bytes are done by now."""
        if (steps := int(done / MB) - self._done) > 0:
            self._progress.advance(steps)
            self._done += steps


def must_have_room(folder: Path, size: int, what: str) -> None:
    """Raise ``UserError`` where ``size`` bytes have no room below ``folder``."""
    place = next(each for each in (folder, *folder.absolute().parents) if each.is_dir())
    if (free := shutil.disk_usage(place).free) < size:
        raise UserError(
            f"{what} needs {size / 1e9:.1f} GB in {folder}, where {free / 1e9:.1f} GB are free; "
            "free some space or choose another folder with --to"
        )


def checksums(file: Path, algorithms: Iterable[str], progress: Progress) -> dict[str, str]:
    """Algorithm (``sha256``, ``sha1``, ``md5``) → hex digest of a file's bytes, which are read
    once."""
    hashes = {name: hashlib.new(name, usedforsecurity=False) for name in algorithms}
    bar = Megabytes(progress, f"checking {file.name}", file.stat().st_size)
    with file.open("rb") as stream:
        while data := stream.read(BLOCK):
            for each in hashes.values():
                each.update(data)
            bar.reach(stream.tell())
    return {name: each.hexdigest() for name, each in hashes.items()}


def name_of(url: str) -> str:
    """The last part of a URL's path."""
    return urlsplit(url).path.rpartition("/")[2]
