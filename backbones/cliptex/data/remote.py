"""Shards on servers (``https://``, ``s3://`` …): fetched once by fsspec, then read as local files.

They are stored under ``$CLIPTEX_HOME/shards`` by URL. Remove them (``cache rm --kind shards``) to
fetch them again, for example after they were replaced on the server.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath
from urllib.parse import unquote, urlsplit

import fsspec

from cliptex_common.errors import DISK_FULL, UserError, first_line
from cliptex_common.files import atomic_write, content_key, home
from cliptex_common.locks import lock_path, locked, mark_in_use
from cliptex_common.progress import Progress
from cliptex_common.secrets import hide_secrets, redact, remember_secrets

DOWNLOADS = 16  # at a time


def is_remote(text: str) -> bool:
    """Whether ``text`` is a URL."""
    return re.match(r"[A-Za-z][A-Za-z0-9+.-]+://", text) is not None


def fetch_shards(urls: Sequence[str], progress: Progress) -> list[Path]:
    """Local copies of these shards, in order; those that exist are not fetched again.

    A copy keeps the names of the file and of its folder, so that the keys of its pairs are those of
    any other copy.

    Raises:
        UserError: a shard cannot be fetched; the message has no credentials.
    """
    if not urls:
        return []
    progress.start("fetching shards", len(urls))
    paths = []
    with ThreadPoolExecutor(DOWNLOADS) as pool:
        for path in pool.map(_fetch, urls):
            paths.append(path)
            progress.advance()
    return paths


def _fetch(url: str) -> Path:
    remote = PurePosixPath(unquote(urlsplit(url).path))
    folder = home() / "shards" / content_key(url)
    path = folder / remote.parent.name / remote.name
    mark_in_use(folder)
    if path.exists():
        return path
    with locked(lock_path("shard", url)):
        if not path.exists():
            # not fsspec's simplecache: it would take the part that a killed download left for all
            with atomic_write(path) as temporary:
                _download(url, temporary)
    return path


def _download(url: str, path: Path) -> None:
    protocol, name = url.partition("://")[0], hide_secrets(url)
    remember_secrets(url)
    try:
        fsspec.filesystem(protocol).get_file(url, str(path))
    except Exception as error:  # each protocol has its own errors
        if isinstance(error, OSError) and error.errno in DISK_FULL:
            raise
        raise UserError(
            f"cannot fetch {name}: {redact(first_line(error))}; check --pairs, that its server can"
            " be reached from here, and pip install -e '.[remote]'"
        ) from error
