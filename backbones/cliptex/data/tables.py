"""Tables that are too large to make again in every process: arrays on disk, made once and mapped into memory.

All processes of a machine share their pages, and opening one costs the same whatever its length.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from backbones.files import content_key, home, replacing, write_json
from backbones.locks import lock_file, locked

Made = tuple[Mapping[str, np.ndarray], dict[str, Any]]


@dataclass(frozen=True)
class Table:
    """Arrays by name, and what is known of them all; cheap to pickle."""

    file: Path
    facts: Mapping[str, Any]

    def __getitem__(self, name: str) -> np.ndarray:
        return _mapped(self.file.with_suffix(f".{name}.npy"), self.file.stat().st_mtime_ns)


@functools.lru_cache(maxsize=32)
def _mapped(path: Path, mtime_ns: int) -> np.ndarray:
    return np.load(path, mmap_mode="r")


def kept_table(kind: str, what: Any, make: Callable[[], Made], waiting: Callable[[], None]) -> Table:
    """The table of ``what``, under ``$CLIPTEX_HOME/KIND``; made if it is not there, by one process while others wait.

    Args:
        kind: folder and name of the lock.
        what: all that the table follows from; JSON-able.
        make: gives arrays and facts.
        waiting: called when another process makes it.
    """
    key = content_key(what, 32)
    file = home() / kind / f"{key}.json"
    with locked(lock_file(kind, key), waiting):
        if not file.is_file():
            arrays, facts = make()
            for name, array in arrays.items():
                with replacing(file.with_suffix(f".{name}.npy")) as temporary, temporary.open("wb") as out:
                    np.save(out, array)
            write_json(file, facts)
    return Table(file, json.loads(file.read_text(encoding="utf-8")))
