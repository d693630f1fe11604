"""The file in which a worker shows how far its unit of work is."""

from __future__ import annotations

import json
import os
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

from reports.mlflow.heartbeat import repeating

EVERY = 1.0  # seconds between two writes


class StatusFile:
    """A file that is rewritten once a second while the block runs.

    Args:
        path: JSON; its folder is created. A full disk or a missing folder never ends the work.
        fields: initial content, anything that JSON holds; ``update`` changes it.
    """

    def __init__(self, path: Path, **fields: Any) -> None:
        self.path, self.fields = path, fields
        self._writing = ExitStack()

    def update(self, **fields: Any) -> None:
        """Change fields; they are written with the next beat."""
        self.fields.update(fields)

    def __enter__(self) -> StatusFile:
        with suppress(OSError):
            self.path.parent.mkdir(parents=True, exist_ok=True)
        self.write()
        self._writing.enter_context(repeating(self.write, EVERY))
        return self

    def __exit__(self, *error: object) -> None:
        self._writing.close()
        self.write()

    def write(self) -> None:
        """Write the file atomically."""
        temporary = self.path.with_name(f".{self.path.name}.{os.getpid()}")
        with suppress(OSError):
            temporary.write_text(json.dumps(self.fields, default=str), encoding="utf-8")
            temporary.replace(self.path)
