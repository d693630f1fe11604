"""Progress: bars with rate and time left in a terminal, a line now and then in a log."""

from __future__ import annotations

import math
import time
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
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

from benchmark.execution.status_file import StatusFile

OVERVIEW_SECONDS = 30.0  # between two lines of the overview where there is no terminal

# names and paths of users are printed as they are, never read as markup
console = Console(highlight=False, soft_wrap=True, markup=False, emoji=False)


class Reporter(ABC):
    """Receives the progress of the current step.

    Attributes:
        prefix: put before the description of each new step.
    """

    prefix = ""
    _step_number, _done = 0, 0  # of the step in another process

    @abstractmethod
    def start(self, description: str, total: int) -> None:
        """Begin a step of ``total`` parts; the previous step ends."""

    @abstractmethod
    def advance(self, steps: int = 1) -> None:
        """Add ``steps`` finished parts."""

    def follow(self, status: Mapping[str, Any]) -> None:
        """Report the progress in the status file of another process (see ``UnitProgress``)."""
        if "step" not in status:
            return
        if status["number"] != self._step_number:
            self.start(status["step"], status["total"])
            self._step_number, self._done = status["number"], 0
        if status["done"] > self._done:
            self.advance(status["done"] - self._done)
            self._done = status["done"]


class UnitProgress(Reporter):
    """Progress of a unit in a worker, written to its status file."""

    def __init__(self, status: StatusFile) -> None:
        self._status, self._steps = status, 0

    def start(self, description: str, total: int) -> None:
        self._steps += 1
        step = f"{self.prefix}{description}"
        self._status.update(step=step, number=self._steps, total=total, done=0)

    def advance(self, steps: int = 1) -> None:
        self._status.update(done=self._status.fields.get("done", 0) + steps)


class ProgressLine(Reporter):
    """One step: drawn if ``live``, otherwise printed every ``interval`` seconds."""

    def __init__(self, progress: Progress, live: bool, interval: float) -> None:
        self.progress, self.live, self.interval = progress, live, interval
        self._step: Any = None
        self._printed = 0.0

    def start(self, description: str, total: int) -> None:
        self.end()
        self._step = self.progress.add_task(f"{self.prefix}{description}", total=total)
        self._printed = time.monotonic()

    def advance(self, steps: int = 1) -> None:
        if self._step is None:
            return
        self.progress.advance(self._step, steps)
        self._print(self.text)

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
        minutes, seconds = divmod(int(step.time_remaining or 0), 60)
        count = f"{step.completed:.0f}/{step.total:.0f}"
        return f"{step.description}  {count}  {step.speed or 0:.1f}/s  {minutes}:{seconds:02d} left"

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
        expected: kind → units that will be submitted, where the command knows their number.
    """

    def __init__(self, bar: Bar) -> None:
        super().__init__(bar.progress, bar.live, OVERVIEW_SECONDS)
        self.expected, self._submitted = Counter[str](), Counter[str]()
        # of units that have ended, and of those among them that have not failed
        self._ended, self._measured = Counter[str](), Counter[str]()
        self._seconds: Counter[str] = Counter()
        self._text = ""

    def add_submitted(self, kind: str) -> None:
        """Count a unit, which need not be expected."""
        self._submitted[kind] += 1
        self.expected[kind] -= 1

    def add_ended(self, kind: str, seconds: float | None = None) -> None:
        """Count a unit that has ended, after ``seconds`` of work if it has not failed."""
        self._ended[kind] += 1
        if seconds is not None:
            self._measured[kind] += 1
            self._seconds[kind] += seconds  # type: ignore[assignment]

    def _units(self) -> Counter[str]:
        """All units by kind; copied first, because other threads add to them meanwhile."""
        return Counter(dict(self._submitted)) + +Counter(dict(self.expected))

    def seconds_left(self, running: Sequence[tuple[str, float]], slots: int) -> float | None:
        """Seconds until all units are done, by the mean of finished ones of the same kind; None
        before each kind has one.

        Args:
            running: kind of each running unit, and since how many seconds it runs.
            slots: units that run at once.
        """
        pending = self._units() - Counter(dict(self._ended))
        if not all(self._measured[kind] for kind in pending):
            return None
        mean = {kind: self._seconds[kind] / self._measured[kind] for kind in pending}
        work = sum(mean[kind] * count for kind, count in pending.items())
        done = sum(min(seconds, mean.get(kind, 0.0)) for kind, seconds in running)
        return max(work - done, 0.0) / slots

    def tick(self, running: Sequence[tuple[ProgressLine, str, float]], slots: int = 1) -> None:
        """Draw the number of finished units, or print it with the steps of ``running`` when due.

        Args:
            running: line and kind of each running unit, and since how many seconds it runs.
        """
        if self._step is None:
            self.start("units of work", 0)
        done, total = self._ended.total(), self._units().total()
        seconds = self.seconds_left([(kind, seconds) for _, kind, seconds in running], slots)
        time_left = ""
        if seconds is not None and done < total:
            time_left = f", {int(seconds) // 60}:{int(seconds) % 60:02d} left"
        self._text = f"units of work  {done}/{total}{time_left}"
        description = f"units of work{time_left}"
        self.progress.update(self._step, completed=done, total=total, description=description)
        if steps := list(filter(None, (line.text() for line, *_ in running))):
            self._print(lambda: "; ".join([self.text(), *steps]))

    def text(self) -> str:
        """The number of finished units, and the time left if it is known."""
        return self._text


_reporter: Reporter | None = None


@contextmanager
def reporting(progress: Reporter) -> Iterator[None]:
    """Make ``progress`` what ``reporter()`` returns while the block runs."""
    global _reporter
    previous, _reporter = _reporter, progress
    try:
        yield
    finally:
        _reporter = previous


def reporter() -> Reporter:
    """The receiver of the progress of this process's work."""
    return _reporter if _reporter is not None else Bar(interval=math.inf)
