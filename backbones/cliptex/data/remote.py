"""Shards that lie elsewhere (``https://``, ``s3://`` …), read by range requests through fsspec.

Nothing is copied to this machine but the bytes that are asked for. A shard is known by URL, size
and what its server says of its version; each member is read with its tar header, so that a shard
that was replaced meanwhile is noticed and never mixed up.
"""

from __future__ import annotations

import functools
import os
import re
import tarfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import IO, Any
from urllib.parse import unquote, urlsplit

from common.errors import UserError

BLOCK = (
    1 << 22
    # bytes of one request while a shard is indexed: members that are smaller are quicker read than
    # skipped
)
GAP = 1 << 16  # bytes between two members that are quicker read along than asked for apart
WAITS = (0.5, 2.0)  # seconds before a request that found no answer is made again
AT_ONCE = 16  # requests
# before a host; a key of S3 may have a slash in it
USER = re.compile(r"(?<=://)[^/@]*@|(?<=s3://)[^/:@]*:[^@]*@")
NO_RANGES = "its server has no range requests; copy the shards to a disk, or to a server that has"


@dataclass(frozen=True)
class RemoteFile:
    """A file on a server, as it was found.

    Attributes:
        url: where it is; size: in bytes.
        version: its ETag, or when it was last modified; '' where the server says neither.
    """

    url: str = field(repr=False)
    size: int
    version: str

    def __str__(self) -> str:
        return shown(self.url)

    @property
    def stem(self) -> str:
        return self._path.stem

    @property
    def parent(self) -> PurePosixPath:
        return self._path.parent

    @property
    def _path(self) -> PurePosixPath:
        return PurePosixPath(unquote(urlsplit(self.url).path))

    @contextmanager
    def open(self, mode: str = "rb") -> Iterator[IO[bytes]]:
        """Read it from one end to the other, in large blocks. Raises ``UserError`` when it cannot
        be."""
        with (
            _told(self.url),
            _filesystem(self.url).open(
                self.url, mode, block_size=BLOCK, cache_type="readahead"
            ) as file,
        ):
            yield file

    def read(self, places: Sequence[Sequence[int]]) -> list[bytes]:
        """Members of the tar, by their offsets and sizes; in one request when they are neighbours.

        Raises:
            OSError: they cannot be had, or the file is no longer the one that was indexed;
                ``strerror`` says which.
        """
        start = min(int(offset) for offset, _ in places) - tarfile.BLOCKSIZE
        end = max(int(offset + size) for offset, size in places)
        if len(places) > 1 and end - start > sum(int(size) for _, size in places) + GAP:
            return [data for place in places for data in self.read([place])]
        got = self._fetch(start, end)
        members = []
        for offset, size in places:
            at = int(offset) - start
            try:
                header = tarfile.TarInfo.frombuf(
                    got[at - tarfile.BLOCKSIZE : at], "utf-8", "surrogateescape"
                )
            except tarfile.HeaderError:
                header = tarfile.TarInfo()
            if len(got) != end - start or header.size != size:
                raise OSError(0, "it has changed since it was indexed", str(self))
            members.append(got[at : at + int(size)])
        return members

    def _fetch(self, start: int, end: int) -> bytes:
        """Bytes from ``start`` to ``end`` (exclusive); fewer where it ends early. Raises
        ``OSError``."""
        asked: dict[str, Any] = {}
        if self.url.startswith("http"):
            asked["headers"] = {"Accept-Encoding": "identity"}
            if self.version and not self.version.startswith(
                "W/"
            ):  # then the server itself refuses another version
                name = "If-Match" if self.version.startswith('"') else "If-Unmodified-Since"
                asked["headers"][name] = self.version
        waits = iter(WAITS)
        while True:
            try:
                return _filesystem(self.url).cat_file(self.url, start=start, end=end, **asked)
            except Exception as error:
                if (reason := _reason(error, self.url)) is None:
                    raise
                final = (
                    isinstance(error, FileNotFoundError) or 400 <= getattr(error, "status", 0) < 500
                )
                if final or (wait := next(waits, None)) is None:
                    raise OSError(0, reason, str(self)) from error
                time.sleep(wait)


def is_remote(text: str) -> bool:
    """Whether it is a URL and no path of this machine."""
    return re.match(r"[A-Za-z][A-Za-z0-9+.-]+://", text) is not None


def shown(url: str) -> str:
    """A URL as it may be printed: without password and signature."""
    return USER.sub("", url).partition("?")[0]


def _hidden(text: str, url: str) -> str:
    """What a library said of ``url``, of which it quotes parts, without its secrets, in one
    line."""
    user = found[0][:-1] if (found := USER.search(url)) else ""
    parts = user, *user.split(":", 1), *re.split("[:/]", user)
    secrets = {form for part in parts for form in (part, unquote(part)) if len(form) > 3}
    text = " ".join(text.split()).replace(url, shown(url))
    for secret in sorted(secrets, key=len, reverse=True):
        text = text.replace(secret, "***")
    return text


def find_remote(urls: Sequence[str]) -> list[RemoteFile]:
    """What their servers say of these files. Raises ``UserError`` for the first that cannot be
    read."""
    with ThreadPoolExecutor(AT_ONCE) as pool:
        return list(pool.map(_find, urls))


def _find(url: str) -> RemoteFile:
    with _told(url):
        info = _filesystem(url).info(url)
    if info.get("type") == "directory":
        raise UserError(
            f"{shown(url)} is a folder; name its shards by braces, {{00000..00331}}.tar"
        )
    if info.get("size") is None or info.get("partial") is False:
        raise UserError(f"{shown(url)} cannot be read in parts: {NO_RANGES}")
    version = next(
        (info[key] for key in ("ETag", "LastModified", "Last-Modified", "mtime") if info.get(key)),
        "",
    )
    return RemoteFile(url, int(info["size"]), str(version))


def _filesystem(url: str) -> Any:
    """fsspec's side of it, one for each protocol and process."""
    protocol = url.partition("://")[0]
    try:
        return _instance(protocol, os.getpid())
    except (ImportError, ValueError) as error:
        raise UserError(
            f"{protocol}:// cannot be read here ({error}); pip install 'cliptex-benchmark[remote]',"
            " or copy the shards to a disk"
        ) from error


@functools.cache
def _instance(protocol: str, pid: int) -> Any:
    """Kept by process: after a fork the child makes its own, and keeps its parent's unused. To let
    go of it would end its
    connections, whose events the parent then waits for in vain: both have one epoll."""
    import fsspec

    return fsspec.filesystem(protocol, skip_instance_cache=True)


@contextmanager
def _told(url: str) -> Iterator[None]:
    """Say in one line what keeps a file from being read. Raises ``UserError``; mistakes of a
    program go through as they are."""
    try:
        yield
    except Exception as error:
        if isinstance(error, ValueError) and "range requests" in str(error):
            raise UserError(f"{shown(url)} cannot be read in parts: {NO_RANGES}") from error
        if reason := _reason(error, url):
            mend = "check --pairs, and that its server can be reached from here"
            raise UserError(f"cannot read {shown(url)}: {reason}; {mend}") from error
        raise


def _reason(error: BaseException, url: str) -> str | None:
    """Why a request for ``url`` failed; None when it is no failure of a request."""
    cause = error.__cause__
    if (
        isinstance(error, FileNotFoundError)
        and cause
        and type(cause).__module__.startswith(("aiohttp", "asyncio"))
    ):
        error = cause  # fsspec says "not found" whatever a server answers, or does not
    status = getattr(error, "status", 0)
    if isinstance(error, FileNotFoundError) or status == 404:
        return "it is not there"
    if status in (412, 416):
        return "it has changed since it was indexed"
    if status:
        return _hidden(f"its server answered {status} {getattr(error, 'message', '')}", url)
    packages = {kind.__module__.partition(".")[0] for kind in type(error).__mro__}
    if isinstance(error, OSError) or packages & {
        "aiohttp",
        "botocore",
        "aiobotocore",
        "fsspec",
        "s3fs",
    }:
        return _hidden(str(error), url) or type(error).__name__
    return None
