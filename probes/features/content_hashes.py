"""sha256 of files, so that whatever is cached about an image follows its content, not its name:
``content_hashes`` of many, whose hashes are stored on disk, ``content_hash`` of one.

A hash is stored with the file's size, time and inode, one file of ``$CLIPTEX_HOME/content_hashes``
for each folder, to which processes append lines. A dataset's check reads every file anyway and
stores its hashes, so that a large dataset is read once.
"""

from __future__ import annotations

import hashlib
import json
from collections import defaultdict
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import lru_cache
from pathlib import Path

from cliptex_common.errors import UserError
from cliptex_common.files import content_key, home
from probes.features.members import FileState, read_bytes, state_of

HashedFile = tuple[Path, FileState, str]  # with its sha256


def content_hashes(paths: Sequence[Path]) -> list[str]:
    """The sha256 of each file. A file is read only if its size, time or inode have changed.

    Raises:
        UserError: a file cannot be read.
    """
    stored = {folder: stored_hashes(folder) for folder in {path.parent for path in paths}}
    try:
        states = [state_of(path) for path in paths]
        changed = [
            (path, state)
            for path, state in zip(paths, states, strict=True)
            if stored[path.parent].get(path.name, ("",))[0] != state
        ]
        with ThreadPoolExecutor(4) as pool:  # reading and hashing release the GIL
            hashes = pool.map(read_sha256, [path for path, _ in changed])
            hashed = [(*file, sha256) for file, sha256 in zip(changed, hashes, strict=True)]
    except OSError as error:
        raise UserError(f"cannot read {error.filename}: {error.strerror}") from error
    store_hashes(hashed)
    for path, state, sha256 in hashed:
        stored[path.parent][path.name] = state, sha256
    return [stored[path.parent][path.name][1] for path in paths]


def content_hash(path: str | Path) -> str:
    """The sha256 of a file, which this process reads once unless it changes. Raises ``OSError``."""
    return _sha256_of_state(Path(path), state_of(path))


def read_and_hash(path: Path) -> tuple[bytes, HashedFile]:
    """A file's bytes, and what ``store_hashes`` stores of it. Raises ``OSError``."""
    state = state_of(path)
    data = read_bytes(path)
    return data, (path, state, hashlib.sha256(data).hexdigest())


def read_sha256(path: Path) -> str:
    """The sha256 of a file, read now. Raises ``OSError``."""
    return hashlib.sha256(read_bytes(path)).hexdigest()


@lru_cache(maxsize=2**17)
def _sha256_of_state(path: Path, state: FileState) -> str:
    return read_sha256(path)


def record_of(folder: Path) -> Path:
    """Where the hashes of a folder's files are stored."""
    return home() / "content_hashes" / f"{content_key(folder.absolute(), 32)}.jsonl"


def stored_hashes(folder: Path) -> dict[str, tuple[FileState, str]]:
    """Name → (state, sha256) of the files of a folder; the last line of a name counts."""
    stored = {}
    with suppress(OSError), record_of(folder).open(encoding="utf-8") as lines:
        for line in lines:
            with suppress(ValueError):  # cut short by a process that was killed
                name, size, time, inode, sha256 = json.loads(line)
                stored[name] = ((size, time, inode), sha256)
    return stored


def store_hashes(entries: Iterable[HashedFile]) -> None:
    """Append entries for other processes."""
    folders: dict[Path, list[str]] = defaultdict(list)
    for path, state, sha256 in entries:
        folders[path.parent].append(json.dumps([path.name, *state, sha256]) + "\n")
    with suppress(OSError):  # without the file, hashes are computed again
        for folder, lines in folders.items():
            record_of(folder).parent.mkdir(parents=True, exist_ok=True)
            with record_of(folder).open("a", encoding="utf-8") as file:
                # the empty line ends one that a killed process has cut short
                file.write("".join(["\n", *lines]))
