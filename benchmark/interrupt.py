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
_once = False


def install(*, once: bool = False) -> None:
    """Let SIGINT and SIGTERM raise ``KeyboardInterrupt`` in this process, and end a forked worker at once.

    Args:
        once: a second signal is ignored, so that it does not break what the first lets be saved: for a process that gets one
            with its whole group, and one from its parent.
    """
    global _main, _interrupted, _once
    _main, _interrupted, _once = os.getpid(), False, once
    signal.signal(signal.SIGTERM, _handle)
    signal.signal(signal.SIGINT, _handle)


def _handle(number: int, frame: FrameType | None) -> None:
    global _interrupted
    if os.getpid() != _main:
        os._exit(128 + number)
    _interrupted = True
    if _once:
        signal.signal(number, signal.SIG_IGN)
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
