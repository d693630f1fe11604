"""Ctrl-C and SIGTERM: remembered, since a signal to the whole process group also kills loading workers, whose death would
otherwise be taken for the failure of a task."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

_main = os.getpid()
_interrupted = False


def install() -> None:
    """Let SIGINT and SIGTERM raise ``KeyboardInterrupt`` in this process, and end a forked worker at once."""
    global _main, _interrupted
    _main, _interrupted = os.getpid(), False
    signal.signal(signal.SIGTERM, _handle)
    signal.signal(signal.SIGINT, _handle)


def _handle(number: int, frame: FrameType | None) -> None:
    global _interrupted
    if os.getpid() != _main:
        os._exit(128 + number)
    _interrupted = True
    raise KeyboardInterrupt


@contextmanager
def as_interrupt() -> Iterator[None]:
    """Whatever breaks after the signal came is the interruption, not an error of its own."""
    try:
        yield
    except Exception as error:
        if _interrupted:
            raise KeyboardInterrupt from error
        raise
