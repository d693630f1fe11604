"""Tables that are too large to make again in every process: arrays on disk, made once and mapped into memory.

All processes of a machine share their pages, and opening one costs the same whatever its length.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from backbones.utils.files import content_key, home, replacing, write_json
from backbones.utils.locks import lock_file, locked

Made = tuple[Mapping[str, np.ndarray], dict[str, Any]]


class Table:
    """Arrays by name, and ``facts`` on them all; cheap to pickle when they are in a file."""

    def __init__(self, file: Path, facts: Mapping[str, Any], arrays: Mapping[str, np.ndarray] | None = None) -> None:
        self.file, self.facts = file, facts
        self._mapped = dict(arrays or {})

    def __getitem__(self, name: str) -> np.ndarray:
        if name not in self._mapped:
            mapped = np.load(self.file.with_suffix(f".{name}.npy"), mmap_mode="r")
            self._mapped[name] = mapped.view(np.ndarray)  # which is quicker to index
        return self._mapped[name]

    def __getstate__(self) -> dict[str, Any]:
        return {"file": self.file, "facts": self.facts, "_mapped": {}}


def kept_table(kind: str, what: Any, make: Callable[[], Made], waiting: Callable[[], None] | None) -> Table:
    """The table of ``what``, under ``$CLIPTEX_HOME/KIND``; made if it is not there, by one process while others wait.

    Args:
        kind: folder and name of the lock.
        what: all that the table follows from; JSON-able.
        make: gives arrays and facts.
        waiting: called when another process makes it. None: nothing is written; the table is made in memory if it is not there.
    """
    key = content_key(what, 32)
    file = home() / kind / f"{key}.json"
    if waiting is None:
        if file.is_file():
            return Table(file, json.loads(file.read_text(encoding="utf-8")))
        arrays, facts = make()
        return Table(file, facts, arrays)
    with locked(lock_file(kind, key), waiting):
        if not file.is_file():
            arrays, facts = make()
            for name, array in arrays.items():
                with replacing(file.with_suffix(f".{name}.npy")) as temporary, temporary.open("wb") as out:
                    np.save(out, array)
            write_json(file, facts)
    return Table(file, json.loads(file.read_text(encoding="utf-8")))
