"""What a run as a whole is at: a bar above those of its units in a terminal, a line now and then
elsewhere."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence

from benchmark.execution.progress import Bar, ProgressLine, console

EVERY = 30.0  # seconds between two lines where there is no terminal
ENOUGH = 3  # units that must have ended before a time is told by them


class Overview:
    """Counts units of work by kind, those that are only expected among them."""

    def __init__(self, bar: Bar) -> None:
        self._line: ProgressLine | None = None
        self._bar = bar if isinstance(bar, Bar) else None  # others only follow single steps
        self._began = self._said = time.monotonic()
        self._submitted, self._expected = Counter[str](), Counter[str]()
        self._done = 0

    def expect(self, kind: str, units: int) -> None:
        """So many units of a kind are to come (or, below 0, do not come) beside those that were
        expected."""
        self._expected[kind] += units

    def submitted(self, kind: str) -> None:
        """One of them is there."""
        self._submitted[kind] += 1

    def ended(self) -> None:
        """One has ended, well or not."""
        self._done += 1

    @property
    def total(self) -> int:
        """Units of which anything is known."""
        kinds = self._expected.keys() | self._submitted.keys()
        return sum(max(self._expected[kind], self._submitted[kind]) for kind in kinds)

    def tick(self, running: Sequence[ProgressLine]) -> None:
        """Draw, or say when it is time, where all is and what the units under way do."""
        if self._bar is None:
            return
        if self._bar.live:
            self._line = self._line or self._bar.line()
            self._line.show("all units of work", self._done, self.total)
        elif running and time.monotonic() - self._said >= EVERY:
            passed, total = time.monotonic() - self._began, self.total
            left = (
                f", about {_clock(passed * (total - self._done) / self._done)} left"
                if self._done >= ENOUGH
                else ""
            )
            under_way = "; ".join(filter(None, (line.told() for line in running)))
            console.print(
                f"  {self._done} of {total} units of work done in {_clock(passed)}{left}:"
                f" {under_way}",
                markup=False,
            )
            self._said = time.monotonic()

    def close(self) -> None:
        """Take the bar away."""
        if self._line is not None:
            self._line.end()


def _clock(seconds: float) -> str:
    return f"{int(seconds) // 60}:{int(seconds) % 60:02d}"
