"""How often to do what takes time, such as saving the state of a training."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

MAX_SHARE = 0.02  # of the time


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
