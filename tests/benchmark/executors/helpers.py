"""A bar and time spans that the tests of executors look at."""

from __future__ import annotations

from benchmark.progress import Bar, ProgressLine


class RecordingBar(Bar):
    """A bar that records its calls."""

    def __init__(self):
        super().__init__()
        self.calls = []

    def start(self, description, total):
        super().start(description, total)
        self.calls.append((description, total))

    def advance(self, steps=1):
        super().advance(steps)
        self.calls.append(steps)

    def follow(self, path):
        super().follow(path)
        done = self.progress.tasks[-1].completed if self.step is not None else 0
        if done and self.calls[-1] != done:
            self.calls.append(done)

    def print_when_due(self) -> None:
        """Nothing: the console shows only what units print."""

    def line(self) -> ProgressLine:
        line = RecordingBar()
        line.calls = self.calls
        return line


def peak_cores(spans) -> int:
    """The most cores that spans ``(cores, start, end)`` used at once."""
    return max(
        sum(cores for cores, start, end in spans if start <= moment < end) for _, moment, _ in spans
    )
