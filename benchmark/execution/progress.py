"""Progress: bars with rate and time left in a terminal, a line now and then in a log."""

from __future__ import annotations

import json
import math
import os
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from statistics import fmean
from typing import Any, Self

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeRemainingColumn,
)
from rich.text import Text

OVERVIEW_SECONDS = 30.0  # between two lines of the overview where there is no terminal

# names and paths of users are printed as they are, never read as markup
console = Console(highlight=False, soft_wrap=True, markup=False, emoji=False)


class UnitProgress:
    """Progress of a unit in a worker, for the submitting process to read in a JSON file.

    Attributes:
        prefix: put before the description of each new step.
    """

    prefix = ""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._status: dict[str, Any] = {"number": 0}

    def start(self, description: str, total: int) -> None:
        """Begin a step of ``total`` parts; the previous step ends."""
        step, number = f"{self.prefix}{description}", self._status["number"] + 1
        self._status = {"step": step, "number": number, "total": total, "done": 0}

    def advance(self, steps: int = 1) -> None:
        """Add ``steps`` finished parts."""
        self._status["done"] = self._status.get("done", 0) + steps

    def write(self) -> None:
        """Write the file; a full disk or a missing folder never ends the work."""
        with suppress(OSError):
            temporary = self.path.with_name(f".{self.path.name}.{os.getpid()}")
            temporary.write_text(json.dumps(self._status), encoding="utf-8")
            temporary.replace(self.path)


class ProgressLine:
    """One step: drawn if ``live``, otherwise printed every ``interval`` seconds.

    Attributes:
        prefix: put before the description of each new step.
    """

    prefix = ""

    def __init__(self, progress: Progress, live: bool, interval: float) -> None:
        self.progress, self.live, self.interval = progress, live, interval
        self._step: Any = None
        self._printed = 0.0
        self._number, self._done = 0, 0  # of the step in another process

    def start(self, description: str, total: int) -> None:
        """Begin a step of ``total`` parts; the previous step ends."""
        self.end()
        self._step = self.progress.add_task(f"{self.prefix}{description}", total=total)
        self._printed = time.monotonic()

    def advance(self, steps: int = 1) -> None:
        """Add ``steps`` finished parts."""
        if self._step is None:
            return
        self.progress.advance(self._step, steps)
        self._print(self.text)

    def follow(self, status: Mapping[str, Any]) -> None:
        """Show the progress in another process, as ``UnitProgress`` writes it."""
        if "step" not in status:
            return
        if status["number"] != self._number:
            self.start(status["step"], status["total"])
            self._number, self._done = status["number"], 0
        if status["done"] > self._done:
            self.advance(status["done"] - self._done)
            self._done = status["done"]

    def _print(self, text: Callable[[], str]) -> None:
        """Print a line if it is due; ``text`` takes as long as a fast step."""
        if not self.live and time.monotonic() - self._printed >= self.interval:
            self._printed = time.monotonic()
            console.print(f"  {text()}")

    def text(self) -> str:
        """The step's description, count, rate and time left; '' between steps."""
        if self._step is None:
            return ""
        # another thread may end the step meanwhile
        step = next((task for task in self.progress.tasks if task.id == self._step), None)
        if step is None:
            return ""
        count = f"{step.completed:.0f}/{step.total:.0f}"
        time_left = f"{_clock(step.time_remaining or 0)} left"
        return f"{step.description}  {count}  {step.speed or 0:.1f}/s  {time_left}"

    def end(self) -> None:
        """Remove the line."""
        if self._step is not None:
            self.progress.remove_task(self._step)
            self._step = None


class _Rate(TextColumn):
    def render(self, task):
        speed = task.finished_speed or task.speed
        return Text(f"{speed:.1f}/s" if speed else "", style="cyan")


class Bar(ProgressLine):
    """The current step and further lines beside it (``line``), drawn only in a terminal."""

    def __init__(self, interval: float = 15.0) -> None:
        description = TextColumn("{task.description}", markup=False)
        columns = (BarColumn(bar_width=24), MofNCompleteColumn(), _Rate(""), TimeRemainingColumn())
        progress = Progress(SpinnerColumn(), description, *columns, console=console, transient=True)
        super().__init__(progress, console.is_terminal, interval)

    def __enter__(self) -> Self:
        if self.live:
            self.progress.start()
        return self

    def __exit__(self, *error: object) -> None:
        if self.live:
            self.progress.stop()

    def line(self) -> ProgressLine:
        """A further line for concurrent work; ``Overview`` prints it where it is not drawn."""
        return ProgressLine(self.progress, self.live, math.inf)


class Overview(ProgressLine):
    """Counts units of work: a bar beside those of the units, or a line every half minute.

    Attributes:
        expected: kind → units that the command will submit in all, where it knows their number.
        submitted, ended: kind → units.
        seconds: kind → of each unit that was done.
    """

    def __init__(self, bar: Bar) -> None:
        super().__init__(bar.progress, bar.live, OVERVIEW_SECONDS)
        self.expected, self.submitted, self.ended = Counter[str](), Counter[str](), Counter[str]()
        self.seconds: dict[str, list[float]] = defaultdict(list)
        self._text = ""

    def units(self) -> Counter[str]:
        """All units by kind."""
        # copies, because another thread counts submitted units meanwhile
        return Counter(dict(self.expected)) | Counter(dict(self.submitted))

    def seconds_left(self, running: Sequence[tuple[str, float]], slots: int) -> float | None:
        """Seconds until all units are done, by the mean of finished ones of the same kind; None
        before each kind has one.

        Args:
            running: kind of each running unit, and since how many seconds it runs.
            slots: units that run at once.
        """
        pending = self.units() - Counter(dict(self.ended))
        if not all(self.seconds[kind] for kind in pending):
            return None
        mean = {kind: fmean(self.seconds[kind]) for kind in pending}
        done = sum(min(seconds, mean[kind]) for kind, seconds in running if kind in mean)
        return (sum(mean[kind] * count for kind, count in pending.items()) - done) / slots

    def tick(self, running: Sequence[tuple[ProgressLine, str, float]], slots: int = 1) -> None:
        """Draw the number of finished units, or print it with the steps of ``running`` when due.

        Args:
            running: line and kind of each running unit, and since how many seconds it runs.
        """
        if self._step is None:
            self.start("units of work", 0)
        done, total = self.ended.total(), self.units().total()
        seconds = self.seconds_left([(kind, seconds) for _, kind, seconds in running], slots)
        time_left = f", {_clock(seconds)} left" if seconds else ""
        self._text = f"units of work  {done}/{total}{time_left}"
        description = f"units of work{time_left}"
        self.progress.update(self._step, completed=done, total=total, description=description)
        if steps := list(filter(None, (line.text() for line, *_ in running))):
            self._print(lambda: "; ".join([self._text, *steps]))


def _clock(seconds: float) -> str:
    return f"{int(seconds) // 60}:{int(seconds) % 60:02d}"


_reporter: ProgressLine | UnitProgress | None = None


@contextmanager
def reporting(progress: ProgressLine | UnitProgress) -> Iterator[None]:
    """Make ``progress`` what ``reporter()`` returns while the block runs."""
    global _reporter
    previous, _reporter = _reporter, progress
    try:
        yield
    finally:
        _reporter = previous


def reporter() -> ProgressLine | UnitProgress:
    """The receiver of the progress of this process's work."""
    return _reporter if _reporter is not None else Bar(interval=math.inf)
