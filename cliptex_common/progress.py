"""What accompanies long work: a pace for saving its state, calls that repeat beside it, and what
its caller gives it, a log for curves and a progress bar."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Protocol

MAX_SHARE = 0.02  # of the time that work takes, for what ``Pace`` times


class Pace:
    """Says when something is due: ``seconds`` after it was last done. What would take more than
    ``MAX_SHARE`` of the time is due less often, and with 0 seconds it is always due."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self._due_at = time.monotonic() + seconds

    @property
    def is_due(self) -> bool:
        return time.monotonic() >= self._due_at

    @contextmanager
    def timed(self) -> Iterator[None]:
        """Do it in this block."""
        started = time.monotonic()
        yield
        ended = time.monotonic()
        if self.seconds:
            self._due_at = ended + max(self.seconds, (ended - started) / MAX_SHARE)


@contextmanager
def repeating(function: Callable[[], object], seconds: float) -> Iterator[None]:
    """Call ``function`` every ``seconds`` from a thread during the block, whatever it raises: so a
    process shows that it is alive."""
    over = threading.Event()

    def repeat() -> None:
        while not over.wait(seconds):
            with suppress(Exception):
                function()

    thread = threading.Thread(target=repeat, name="repeating", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


class RunLog(Protocol):
    """Where curves go, such as a tracker's run."""

    def log_metrics(self, metrics: Mapping[str, float], step: int) -> None:
        """Record values of curves (``train/loss``, ``val/i2t_R@1`` …) at ``step``."""


class Progress(Protocol):
    """A progress bar."""

    def start(self, description: str, total: int) -> None: ...

    def advance(self, steps: int = 1) -> None: ...


class Silent:
    """A ``RunLog`` and a ``Progress`` that discard everything."""

    def log_metrics(self, metrics: Mapping[str, float], step: int) -> None:
        pass

    def start(self, description: str, total: int) -> None:
        pass

    def advance(self, steps: int = 1) -> None:
        pass
