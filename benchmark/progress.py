"""Progress: bars with rate and time left in a terminal, a line every half minute in a log."""

from __future__ import annotations

import json
import os
import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from pathlib import Path
from statistics import fmean
from typing import Any, Self

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    SpinnerColumn,
    Task,
)
from rich.table import Column
from rich.text import Text

from cliptex_common.files import read_json_object
from cliptex_common.progress import Pace


class _Console(Console):
    def on_broken_pipe(self) -> None:
        raise BrokenPipeError  # rich exits with 1


# names and paths of users are printed as they are, never read as markup
console = _Console(highlight=False, soft_wrap=True, markup=False, emoji=False)


# of the units that a coroutine submits, where their names do not tell them apart
subject = ContextVar("subject", default="")


RATE_SECONDS = 600.0  # that a rate is the mean of: the parts of slow work may take minutes each
SLOW = 0.1  # parts a second, below which the seconds of one are shown


class ProgressLine:
    """A line of a ``Progress``, which shows one step of work after the other; by default of one
    that is not drawn.

    Attributes:
        prefix: put before the description of each new step.
    """

    prefix = ""

    def __init__(self, progress: Progress | None = None) -> None:
        self.progress = progress or Progress(disable=True)
        self.step: Any = None
        self._number = 0  # of the step

    def start(self, description: str, total: int) -> None:
        """Begin a step of ``total`` parts; the previous step ends."""
        self.end()
        title = f"{subject.get()}{self.prefix}{description}"
        self.step = self.progress.add_task(title, total=total)
        self._number += 1

    def advance(self, steps: int = 1) -> None:
        """Add this many finished parts."""
        if self.step is not None:
            self.progress.advance(self.step, steps)

    def write(self, path: Path) -> None:
        """Write the step to a file, for ``follow`` in another process; a full disk or a missing
        folder never ends the work."""
        status = {}
        for task in self.progress.tasks:  # one at most
            status = {
                "number": self._number,
                "step": task.description,
                "total": task.total,
                "done": task.completed,
            }
        with suppress(OSError):
            temporary = path.with_name(f".{path.name}.{os.getpid()}")
            temporary.write_text(json.dumps(status), encoding="utf-8")
            temporary.replace(path)

    def follow(self, path: Path) -> None:
        """Show the step that ``write`` in another process has written."""
        status = read_json_object(path)
        if not status:
            return
        if status["number"] == self._number:
            self.progress.update(self.step, completed=status["done"])
            return
        self.start(status["step"], status["total"])
        self._number = status["number"]
        self.progress.advance(self.step, status["done"])  # what the rate is counted from

    def end(self) -> None:
        """Remove the step."""
        if self.step is not None:
            self.progress.remove_task(self.step)
            self.step = None


class _Description(ProgressColumn):
    def render(self, task: Task) -> Text:
        return Text(task.description, no_wrap=True, overflow="ellipsis")


class _TimeLeft(ProgressColumn):
    def render(self, task: Task) -> Text:
        return Text(_time_left(task).strip(), style="cyan")


def _time_left(task: Task) -> str:
    """Rate and time left of a step; of an ``Overview`` its time left."""
    speed, seconds = task.speed or 0.0, task.time_remaining
    rate = f"{1 / speed:.0f} s each  " if 0 < speed < SLOW else f"{speed:.1f}/s  "
    if "seconds_left" in task.fields:
        rate, seconds = "", task.fields["seconds_left"]
    if seconds is None:
        return ""
    minutes, hours = int(seconds) // 60, int(seconds) // 3600
    text = f"{hours}:{minutes % 60:02d}" if hours else f"{minutes}"
    return f"  {rate}{text}:{int(seconds) % 60:02d} left"


class Bar(ProgressLine):
    """The progress of a command, with a line of its own and one for each concurrent unit
    (``line``): drawn in a terminal, otherwise printed every ``interval`` seconds."""

    def __init__(self, interval: float = 30.0) -> None:
        fixed = Column(no_wrap=True)  # the description is cut instead: each step stays one line
        columns = (
            SpinnerColumn(table_column=fixed),
            _Description(),
            BarColumn(bar_width=24, table_column=fixed),
            MofNCompleteColumn(table_column=fixed),
            _TimeLeft(table_column=fixed),
        )
        progress = Progress(
            *columns, console=console, transient=True, speed_estimate_period=RATE_SECONDS
        )
        super().__init__(progress)
        self._printing = Pace(interval)
        self._printed = ""

    def __enter__(self) -> Self:
        if console.is_terminal:
            self.progress.start()
        return self

    def __exit__(self, *error: object) -> None:
        if console.is_terminal:
            self.progress.stop()

    def advance(self, steps: int = 1) -> None:
        super().advance(steps)
        self.print_when_due()

    def print_when_due(self) -> None:
        """Print the steps, if they are not drawn and have changed."""
        if console.is_terminal or not self._printing.is_due:
            return
        with self._printing.timed():
            text = self.text()
            if text and text != self._printed:
                console.print(f"  {text}")
            self._printed = text

    def text(self) -> str:
        """Description, count, rate and time left of each step that is not finished."""
        return "; ".join(
            f"{task.description}  {task.completed:.0f}/{task.total:.0f}{_time_left(task)}"
            for task in self.progress.tasks
            if not task.finished
        )

    def line(self) -> ProgressLine:
        """A further line for concurrent work, which another thread shows with its ``subject``."""
        line = ProgressLine(self.progress)
        line.prefix = subject.get()
        return line


class Overview:
    """Counts units of work, as a step of a bar.

    Attributes:
        expected: kind → units that the command will submit in all, where it knows their number.
        submitted, ended: kind → units.
        running: folder of a unit that runs → its kind, and when it started (``time.monotonic``).
        seconds: kind → of each unit that was done.
    """

    def __init__(self, bar: Bar) -> None:
        self.bar = bar
        self.expected, self.submitted, self.ended = Counter[str](), Counter[str](), Counter[str]()
        self.running: dict[Path, tuple[str, float]] = {}
        self.seconds: dict[str, list[float]] = defaultdict(list)
        self._line = ProgressLine(bar.progress)

    def start(self, folder: Path, kind: str) -> None:
        """A unit starts, perhaps once more."""
        self.running[folder] = kind, time.monotonic()

    def end(self, folder: Path, kind: str, is_done: bool) -> None:
        """A unit ends, perhaps before it has started."""
        self.ended[kind] += 1
        if (entry := self.running.pop(folder, None)) and is_done:
            self.seconds[kind].append(time.monotonic() - entry[1])

    def units(self) -> Counter[str]:
        """All units by kind."""
        # ``|`` is the larger count of each kind; copies, because another thread counts meanwhile
        return Counter(dict(self.expected)) | Counter(dict(self.submitted))

    def seconds_left(self, slots: int) -> float | None:
        """Seconds until all units are done, by the mean of finished ones of the same kind; None
        before each kind has one, and where the running ones take longer.

        Args:
            slots: units that run at once.
        """
        pending = self.units() - Counter(dict(self.ended))
        if not all(self.seconds[kind] for kind in pending):
            return None
        mean, now = {kind: fmean(self.seconds[kind]) for kind in pending}, time.monotonic()
        done = sum(
            min(now - started, mean[kind])
            for kind, started in list(self.running.values())
            if kind in mean
        )
        left = sum(mean[kind] * count for kind, count in pending.items()) - done
        return left / slots if left > 0 else None

    def show(self, slots: int) -> None:
        """Draw or print the number of finished units and the time left."""
        if self._line.step is None:
            self._line.start("units of work", 0)
        self.bar.progress.update(
            self._line.step,
            completed=self.ended.total(),
            total=self.units().total(),
            seconds_left=self.seconds_left(slots),
        )
        self.bar.print_when_due()

    def hide(self) -> None:
        """Remove the step."""
        self._line.end()


_reporter: ProgressLine | None = None


@contextmanager
def reporting(progress: ProgressLine) -> Iterator[None]:
    """Make ``progress`` what ``reporter()`` returns while the block runs."""
    global _reporter
    previous, _reporter = _reporter, progress
    try:
        yield
    finally:
        _reporter = previous


def reporter() -> ProgressLine:
    """The receiver of the progress of this process's work."""
    return _reporter or ProgressLine()
