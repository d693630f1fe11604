"""Large tables that are costly to build: arrays on disk, built once and mapped into memory.

All processes of a machine share their pages, and opening one costs the same whatever its length.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from cliptex_common.files import atomic_write, content_key, home, read_json_object, write_json
from cliptex_common.locks import lock_path, locked, mark_in_use

ARRAYS = "arrays"  # key of the metadata: the arrays' names
Contents = tuple[Mapping[str, np.ndarray], dict[str, Any]]  # arrays and metadata


class Table:
    """Arrays by name with JSON ``metadata``; cheap to pickle when stored in a file."""

    def __init__(
        self,
        file: Path,
        metadata: Mapping[str, Any],
        arrays: Mapping[str, np.ndarray] | None = None,
    ) -> None:
        self.file, self.metadata = file, metadata
        self._arrays = dict(arrays or {})

    def __getitem__(self, name: str) -> np.ndarray:
        if name not in self._arrays:
            mapped = np.load(self.file.with_suffix(f".{name}.npy"), mmap_mode="r")
            self._arrays[name] = mapped.view(np.ndarray)  # quicker to index than a memmap
        return self._arrays[name]

    def __getstate__(self) -> dict[str, Any]:
        return {"file": self.file, "metadata": self.metadata, "_arrays": {}}


def cached_table(
    kind: str,
    subject: Any,
    build: Callable[[], Contents],
    on_wait: Callable[[], None] = lambda: None,
    *,
    keep: bool = True,
) -> Table:
    """The table of ``subject`` under ``$CLIPTEX_HOME/KIND``; built, if missing or damaged, by one
    process while others wait.

    Args:
        kind: folder and name of the lock.
        subject: everything that determines the table; JSON-able.
        build: returns arrays and metadata.
        on_wait: called if another process is building it.
        keep: otherwise nothing is written: a missing table is built in memory.
    """
    key = content_key(subject, 32)
    file = home() / kind / f"{key}.json"
    if keep:
        mark_in_use(file.parent)  # workers open it later
    if table := _load(file):
        return table
    if not keep:
        arrays, metadata = build()
        return Table(file, metadata, arrays)
    with locked(lock_path(kind, key), on_wait):
        if table := _load(file):
            return table
        arrays, metadata = build()
        for name, array in arrays.items():
            path = file.with_suffix(f".{name}.npy")
            with atomic_write(path) as temporary, temporary.open("wb") as output:
                np.save(output, array)
        write_json(file, {**metadata, ARRAYS: sorted(arrays)})
    return Table(file, metadata)


def _load(file: Path) -> Table | None:
    """The table in a file; None if it is missing, cut off or damaged."""
    table = Table(file, read_json_object(file))
    try:
        for name in table.metadata[ARRAYS]:
            table[name]  # maps it, which checks header and size
    except (KeyError, TypeError, ValueError, OSError, EOFError):
        return None
    return table
