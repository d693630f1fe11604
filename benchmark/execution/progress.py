"""Progress for people: a bar with rate and time left in a terminal, a line now and then in a
log."""

from __future__ import annotations

import math
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Self

from rich.console import Console, ConsoleDimensions
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeRemainingColumn,
)
from rich.text import Text

from reports.mlflow.heartbeat import Heartbeat


class _Console(Console):
    @property  # type: ignore[misc]
    def size(self) -> ConsoleDimensions:
        """Of ``COLUMNS=0`` rich would make no line at all."""
        found = super().size
        return found if found.width >= 20 else ConsoleDimensions(80, found.height)

    def on_broken_pipe(self) -> None:
        """Rich would end the process with 1, and say nothing."""
        raise BrokenPipeError


# nothing is markup: names and paths are the user's; what has a style is a ``Text``
console = _Console(highlight=False, soft_wrap=True, markup=False, emoji=False)


class Reporter(ABC):
    """What a step under way reports to: rate and time left are its own business.

    Attributes:
        prefix: of the descriptions of the steps that begin.
    """

    prefix = ""
    _number, _done = 0, 0  # of the step that is followed

    @abstractmethod
    def start(self, description: str, total: int) -> None:
        """Begin a step of ``total`` parts; the one before is over."""

    @abstractmethod
    def advance(self, steps: int = 1) -> None:
        """``steps`` more parts are done."""

    def follow(self, status: Mapping[str, Any]) -> None:
        """Report what the heartbeat of another process says (see ``TaskProgress``)."""
        if "step" not in status:
            return
        if status["number"] != self._number:
            self.start(status["step"], status["total"])
            self._number, self._done = status["number"], 0
        if status["done"] > self._done:
            self.advance(status["done"] - self._done)
            self._done = status["done"]


class TaskProgress(Reporter):
    """The progress of a task in a worker: fields of its heartbeat, which the caller reads."""

    def __init__(self, beat: Heartbeat) -> None:
        self._beat, self._steps = beat, 0

    def start(self, description: str, total: int) -> None:
        self._steps += 1
        self._beat.update(
            step=f"{self.prefix}{description}", number=self._steps, total=total, done=0
        )

    def advance(self, steps: int = 1) -> None:
        self._beat.update(done=self._beat.fields.get("done", 0) + steps)


class ProgressLine(Reporter):
    """A step under way: drawn where ``live``, else printed every ``every`` seconds."""

    def __init__(self, progress: Progress, live: bool, every: float) -> None:
        self._progress, self.live, self.every = progress, live, every
        self._step: Any = None
        self._said = 0.0

    def start(self, description: str, total: int) -> None:
        self.end()
        self._step = self._progress.add_task(f"{self.prefix}{description}", total=total)
        self._said = time.monotonic()

    def advance(self, steps: int = 1) -> None:
        if self._step is None:
            return
        self._progress.advance(self._step, steps)
        if not self.live and time.monotonic() - self._said >= self.every:
            self._said = time.monotonic()
            console.print(f"  {self.told()}", markup=False)

    def told(self) -> str:
        """Where the step is, in words; '' between steps."""
        if self._step is None:
            return ""
        (step,) = (each for each in self._progress.tasks if each.id == self._step)
        left = int(step.time_remaining or 0)
        where = (
            f"{step.completed:.0f}/{step.total:.0f}  {step.speed or 0:.1f}/s "
            f" {left // 60}:{left % 60:02d} left"
        )
        return f"{step.description}  {where}"

    def show(self, description: str, done: int, total: int) -> None:
        """Draw a step that is counted elsewhere."""
        if self._step is None:
            self.start(description, total)
        self._progress.update(self._step, completed=done, total=total)

    def end(self) -> None:
        """Take the line away."""
        if self._step is not None:
            self._progress.remove_task(self._step)
            self._step = None


class _Rate(TextColumn):
    def render(self, task):
        speed = task.finished_speed or task.speed
        return Text(f"{speed:.1f}/s" if speed else "", style="cyan")


class Bar(ProgressLine):
    """Progress of the step under way, and of others beside it (``line``): live bars in a terminal,
    elsewhere a line every ``every`` seconds."""

    def __init__(self, every: float = 15.0) -> None:
        described = TextColumn("{task.description}", markup=False)
        columns = (BarColumn(bar_width=24), MofNCompleteColumn(), _Rate(""), TimeRemainingColumn())
        progress = Progress(SpinnerColumn(), described, *columns, console=console, transient=True)
        super().__init__(progress, console.is_terminal, every)

    def __enter__(self) -> Self:
        if self.live:
            self._progress.start()
        return self

    def __exit__(self, *error: object) -> None:
        if self.live:
            self._progress.stop()

    def line(self) -> ProgressLine:
        """A further line, for work that goes on beside the first; where it is not drawn,
        ``Overview`` says what it is at."""
        return ProgressLine(self._progress, self.live, math.inf)


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
    return _reporter if _reporter is not None else Bar(every=math.inf)
