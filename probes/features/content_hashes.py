"""Content of files as hashes, so that what is kept about an image is found by what the image is,
not by its name.

A hash is remembered beside the file's size, time and inode, in one file of
``$CLIPTEX_HOME/content_hashes`` for each folder, to which processes append lines. Whoever reads a
file whole anyway (the check of a dataset) hands its hash on, so that the bytes of a large dataset
are not read once more for it.
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

from common.errors import UserError
from common.files import content_key, home
from probes.features.members import State, read_bytes, sha256_file, state_of

_pending: list[tuple[Path, State, str]] = []


def content_hashes(paths: Sequence[Path]) -> list[str]:
    """The sha256 of each file, in their order. A file whose size, time and inode are those
    remembered is not read.

    Raises:
        UserError: a file cannot be read.
    """
    folders: dict[Path, list[int]] = defaultdict(list)
    for index, path in enumerate(paths):
        folders[path.parent].append(index)
    hashes = [""] * len(paths)
    with ThreadPoolExecutor(4) as pool:  # reading and hashing free the interpreter
        for folder, members in folders.items():
            known = remembered(folder)
            try:
                states = {index: state_of(paths[index]) for index in members}
                new = [
                    index
                    for index in members
                    if known.get(paths[index].name, ("",))[0] != states[index]
                ]
                found = dict(
                    zip(new, pool.map(sha256_file, [paths[index] for index in new]), strict=True)
                )
            except OSError as error:
                raise UserError(
                    f"cannot read {error.filename}: {error.strerror}; was it moved just now?"
                ) from error
            for index in members:
                hashes[index] = found.get(index) or known[paths[index].name][1]
            remember((paths[index], states[index], sha256) for index, sha256 in found.items())
    return hashes


def content_hash(path: str | Path) -> str:
    """The sha256 of one file, read once by this process while it does not change. Raises
    ``OSError``."""
    return _hash(Path(path), state_of(path))


def read_and_hash(path: Path) -> tuple[bytes, str]:
    """A file's bytes and their sha256, which ``save`` remembers. Raises ``OSError``."""
    state = state_of(path)
    data = read_bytes(path)
    sha256 = hashlib.sha256(data).hexdigest()
    _pending.append((path, state, sha256))
    return data, sha256


def save() -> None:
    """Write down what ``read_and_hash`` has found."""
    remember(_pending.pop() for _ in range(len(_pending)))


@lru_cache(maxsize=2**17)
def _hash(path: Path, state: State) -> str:
    return sha256_file(path)


def memory(folder: Path) -> Path:
    """Where the hashes of a folder's files are remembered."""
    return home() / "content_hashes" / f"{content_key(folder.absolute(), 32)}.jsonl"


def remembered(folder: Path) -> dict[str, tuple[State, str]]:
    """Name → (state, sha256) of the files of a folder; of a name that comes twice the last."""
    known = {}
    with suppress(OSError), memory(folder).open(encoding="utf-8") as lines:
        for line in lines:
            with suppress(ValueError):  # cut short by a process that was killed
                name, *state, sha256 = json.loads(line)
                known[name] = ((state[0], state[1], state[2]), sha256)
    return known


def remember(found: Iterable[tuple[Path, State, str]]) -> None:
    """Write down (file, its state, sha256) for others."""
    folders: dict[Path, list[str]] = defaultdict(list)
    for path, state, sha256 in found:
        folders[path.parent].append(json.dumps([path.name, *state, sha256]) + "\n")
    with suppress(OSError):  # a memory that cannot be written is a slower one
        for folder, lines in folders.items():
            memory(folder).parent.mkdir(parents=True, exist_ok=True)
            with memory(folder).open("a", encoding="utf-8") as file:
                file.write(
                    "".join(["\n", *lines])
                )  # after a line that a killed process has cut short
