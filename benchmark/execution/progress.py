"""Progress for people: a bar with rate and time left in a terminal, a line now and then in a log."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import TracebackType
from typing import Any, Protocol

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)
from rich.text import Text

from reports.heartbeat import Heartbeat

console = Console(highlight=False, soft_wrap=True)


class Reporter(Protocol):
    """What a step under way reports to: rate and time left are its own business."""

    prefix: str

    def start(self, description: str, total: int) -> None: ...

    def advance(self, steps: int = 1) -> None: ...


class TaskProgress:
    """The progress of a task in a worker: fields of its heartbeat, which the caller reads."""

    def __init__(self, beat: Heartbeat) -> None:
        self.prefix, self._beat, self._steps = "", beat, 0

    def start(self, description: str, total: int) -> None:
        self._steps += 1
        self._beat.update(step=f"{self.prefix}{description}", number=self._steps, total=total, done=0)

    def advance(self, steps: int = 1) -> None:
        self._beat.update(done=self._beat.fields.get("done", 0) + steps)


class _Rate(TextColumn):
    def __init__(self) -> None:
        super().__init__("")

    def render(self, task):
        speed = task.finished_speed or task.speed
        return Text(f"{speed:.1f}/s" if speed else "", style="cyan")


class Lane:
    """A step under way, and how far it is."""

    def __init__(self, progress: Progress, live: bool, every: float) -> None:
        self.prefix = ""
        self._progress, self.live, self.every = progress, live, every
        self._task: TaskID | None = None
        self._description, self._total, self._done, self._number = "", 0, 0, 0
        self._started = self._said = time.monotonic()

    def start(self, description: str, total: int) -> None:
        """Begin a step of ``total`` parts; the one before is over."""
        self.end()
        self._description = f"{self.prefix}{description}"
        self._total, self._done = total, 0
        self._started = self._said = time.monotonic()
        if self.live:
            self._task = self._progress.add_task(self._description, total=total)

    def advance(self, steps: int = 1) -> None:
        """``steps`` more parts are done."""
        self._done += steps
        if self.live:
            if self._task is not None:
                self._progress.advance(self._task, steps)
            return
        now = time.monotonic()
        if now - self._said >= self.every:
            self._said = now
            rate = self._done / (now - self._started)
            left = (self._total - self._done) / rate if rate else 0
            console.print(
                f"  {self._description}  {self._done}/{self._total}  {rate:.1f}/s  {int(left // 60)}:{int(left % 60):02d} left",
                markup=False,
            )

    def follow(self, status: Mapping[str, Any]) -> None:
        """Show what a task's heartbeat says (see ``TaskProgress``)."""
        if "step" not in status:
            return
        if status["number"] != self._number:
            self._number = status["number"]
            self.start(status["step"], status["total"])
        if status["done"] > self._done:
            self.advance(status["done"] - self._done)

    def end(self) -> None:
        """Take its line away."""
        if self._task is not None:
            self._progress.remove_task(self._task)
            self._task = None


class Bar(Lane):
    """One line of progress for the step under way (and one for each further ``lane``). In a terminal live bars; elsewhere a
    line every ``every`` seconds."""

    def __init__(self, every: float = 15.0):
        super().__init__(
            Progress(
                SpinnerColumn(),
                TextColumn("{task.description}", markup=False),
                BarColumn(bar_width=24),
                MofNCompleteColumn(),
                _Rate(),
                TimeRemainingColumn(),
                console=console,
                transient=True,
            ),
            console.is_terminal,
            every,
        )

    def __enter__(self) -> Bar:
        if self.live:
            self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.live:
            self._progress.stop()

    def lane(self) -> Lane:
        """A further line, for work that goes on beside the first."""
        return Lane(self._progress, self.live, self.every)


_reporter: Reporter | None = None


@contextmanager
def reporting(progress: Reporter) -> Iterator[None]:
    """``reporter()`` is ``progress`` while the block runs."""
    global _reporter
    before, _reporter = _reporter, progress
    try:
        yield
    finally:
        _reporter = before


def reporter() -> Reporter:
    """Where the work that this process does reports its progress."""
    return _reporter if _reporter is not None else Bar(every=float("inf"))
