"""What the tests of executors look at: bars, processes, spans of time."""

from __future__ import annotations

import time
from pathlib import Path

from benchmark.execution import Bar
from benchmark.execution.progress import ProgressLine


class Watched(Bar):
    """A bar that remembers what it was told."""

    def __init__(self):
        super().__init__()
        self.live, self.seen = False, []

    def start(self, description, total):
        super().start(description, total)
        self.seen.append((description, total))

    def advance(self, steps=1):
        super().advance(steps)
        self.seen.append(steps)

    def line(self) -> ProgressLine:
        line = Watched()
        line.seen = self.seen
        return line


def busiest(spans) -> int:
    """The most of ``(cores, began, ended)`` that were taken at once."""
    return max(
        sum(cores for cores, began, ended in spans if began <= moment < ended)
        for _, moment, _ in spans
    )


def gone(*markers: Path, seconds=10.0) -> bool:
    """Whether the processes whose ids are in these files have ended."""
    end = time.monotonic() + seconds
    for pid in (int(marker.read_text()) for marker in markers):
        while (
            Path(f"/proc/{pid}").exists()
            and Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
        ):
            if time.monotonic() > end:
                return False
            time.sleep(0.05)
    return True


def until_true(true, seconds=30.0) -> bool:
    end = time.monotonic() + seconds
    while not true():
        if time.monotonic() > end:
            return False
        time.sleep(0.05)
    return True
