"""Content of files as hashes, so that what is kept about an image is found by what the image is, not by its name."""

from __future__ import annotations

import json
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

from backbones.errors import UserError
from backbones.files import content_key, home, sha256_file, write_text


def digests(paths: Sequence[Path]) -> list[str]:
    """The sha256 of each file, in their order.

    A list of files whose sizes and times have not changed since is not read again.

    Raises:
        UserError: a file cannot be read.
    """
    try:
        states = [[str(path), (status := path.stat()).st_size, status.st_mtime_ns, status.st_ino] for path in paths]
        memory = home() / "digests" / f"{content_key(states, 32)}.json"
        with suppress(OSError, ValueError):
            known = json.loads(memory.read_text(encoding="utf-8"))
            if len(known) == len(paths):
                return known
        with ThreadPoolExecutor(4) as pool:  # reading and hashing free the interpreter
            found = list(pool.map(sha256_file, paths))
    except OSError as error:
        raise UserError(f"cannot read {error.filename}: {error.strerror}; was it moved just now?") from error
    write_text(memory, json.dumps(found))
    return found
