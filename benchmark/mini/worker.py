"""What runs in a rendering process: it counts for the progress bar, stops when told to, and ends with its parent."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from pathlib import Path
from typing import Any

from benchmark.mini.chunk import render_chunk
from benchmark.mini.config import Chunk, WorldConfig

_shared: dict[str, Any] = {}


class Stopped(Exception):
    """The parent wants no more of this chunk."""


def start_worker(rendered: Any, stop: Any) -> None:
    """Initialise a process with a shared counter of pictures and an event that says stop."""
    _shared.update(rendered=rendered, stop=stop)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's business
    parent = multiprocessing.parent_process()
    if parent is None:
        return

    def follow() -> None:
        parent.join()  # returns when the parent is gone, however it went
        os._exit(1)

    threading.Thread(target=follow, daemon=True).start()


def render_in_worker(root: Path, config: WorldConfig, chunk: Chunk) -> None:
    """``render_chunk``, counted picture by picture. Raises ``Stopped`` when told to."""
    render_chunk(root, config, chunk, _step)


def _step() -> None:
    if _shared["stop"].is_set():
        raise Stopped
    with _shared["rendered"].get_lock():
        _shared["rendered"].value += 1
