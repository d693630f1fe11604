"""Tables that are too large to make again in every process: arrays on disk, made once and mapped
into memory.

All processes of a machine share their pages, and opening one costs the same whatever its length.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from common.files import atomic_write, content_key, home, read_json_object, write_json
from common.locks import lock_path, locked

ARRAYS = "arrays"  # a fact of each table: their names
Made = tuple[Mapping[str, np.ndarray], dict[str, Any]]


class Table:
    """Arrays by name, and ``facts`` on them all; cheap to pickle when they are in a file."""

    def __init__(
        self, file: Path, facts: Mapping[str, Any], arrays: Mapping[str, np.ndarray] | None = None
    ) -> None:
        self.file, self.facts = file, facts
        self._mapped = dict(arrays or {})

    def __getitem__(self, name: str) -> np.ndarray:
        if name not in self._mapped:
            mapped = np.load(self.file.with_suffix(f".{name}.npy"), mmap_mode="r")
            self._mapped[name] = mapped.view(np.ndarray)  # which is quicker to index
        return self._mapped[name]

    def __getstate__(self) -> dict[str, Any]:
        return {"file": self.file, "facts": self.facts, "_mapped": {}}


def kept_table(
    kind: str, what: Any, make: Callable[[], Made], waiting: Callable[[], None] | None
) -> Table:
    """The table of ``what``, under ``$CLIPTEX_HOME/KIND``; made if it is not there, by one process
    while others wait.

    Args:
        kind: folder and name of the lock.
        what: all that the table follows from; JSON-able.
        make: gives arrays and facts.
        waiting: called when another process makes it. None: nothing is written; the table is made
            in memory if it is not there.
    """
    key = content_key(what, 32)
    file = home() / kind / f"{key}.json"
    if waiting is None:
        return _kept(file) or Table(file, *reversed(make()))
    with locked(lock_path(kind, key), waiting):
        if (kept := _kept(file)) is None:
            arrays, facts = make()
            for name, array in arrays.items():
                with (
                    atomic_write(file.with_suffix(f".{name}.npy")) as temporary,
                    temporary.open("wb") as out,
                ):
                    np.save(out, array)
            write_json(file, {**facts, ARRAYS: sorted(arrays)})
    return kept or Table(file, facts)


def _kept(file: Path) -> Table | None:
    """The table in a file; None where there is none, or one that is cut or damaged."""
    table = Table(file, read_json_object(file))
    try:
        for name in table.facts[ARRAYS]:
            table[name]  # which maps it: its header and its size are looked at
    except (KeyError, TypeError, ValueError, OSError, EOFError):
        return None
    return table
