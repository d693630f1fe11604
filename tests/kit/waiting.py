"""Wait for what other processes do."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path


def is_soon(condition: Callable[[], object], seconds: float = 300.0, every: float = 0.02) -> bool:
    """Whether a condition holds within so many seconds."""
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            return False
        time.sleep(every)
    return True


def wait_for(path: Path | str, seconds: float = 500.0) -> None:
    """Wait for a file."""
    assert is_soon(Path(path).exists, seconds), f"no {path}"


def is_running(pid: int) -> bool:
    """Whether a process runs and is no zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def have_ended(*markers: Path) -> bool:
    """Whether the processes whose ids are in these files end soon."""
    return is_soon(lambda: not any(is_running(int(marker.read_text())) for marker in markers))
