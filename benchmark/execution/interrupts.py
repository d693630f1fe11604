"""Ctrl-C and SIGTERM: remembered, since a signal to the whole process group also kills loading
workers, whose death would otherwise be taken for the failure of a task."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import FrameType

ASKED = (signal.SIGTERM, signal.SIGINT)
_main = os.getpid()
_interrupted = 0
_once: tuple[int, ...] = ()


def install(*, once: bool = False, numbers: Sequence[int] = ASKED) -> None:
    """Let the signals ``numbers`` raise ``KeyboardInterrupt`` in this process, and end a forked
    worker at once.

    Args:
        once: a second signal, of any of them, is ignored, so that it does not break what the first
            lets be saved: for a process that gets one with its whole group, and one from its
            parent.
    """
    global _main, _interrupted, _once
    _main, _interrupted, _once = os.getpid(), 0, tuple(numbers) if once else ()
    for number in numbers:
        signal.signal(number, _handle)


@contextmanager
def interruptible(numbers: Sequence[int] = ASKED) -> Iterator[None]:
    """``install(once=True)`` while the block runs, then the handlers of before; nothing outside the
    main thread."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in numbers}
    install(once=True, numbers=numbers)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler if handler is not None else signal.SIG_DFL)


def leave(code: int) -> None:
    """From now on a signal ends the process at once, quietly and with ``code``: nothing is left
    that could be saved."""
    for number in ASKED:
        signal.signal(number, lambda *_: os._exit(code))


def received() -> int:
    """The number of the signal that came since ``install``, or 0."""
    return _interrupted


def _handle(number: int, frame: FrameType | None) -> None:
    global _interrupted
    if os.getpid() != _main:
        os._exit(128 + number)
    _interrupted = number
    if _is_importing(
        frame
    ):  # libraries swallow what comes while they are imported, or stay behind half imported
        threading.Timer(0.05, os.kill, (_main, number)).start()
        return
    for each in _once:
        signal.signal(each, signal.SIG_IGN)
    raise KeyboardInterrupt


def _is_importing(frame: FrameType | None) -> bool:
    while frame is not None and frame.f_code.co_filename != "<frozen importlib._bootstrap>":
        frame = frame.f_back
    return frame is not None


@contextmanager
def as_interrupt() -> Iterator[None]:
    """Whatever breaks after the signal came is the interruption, not an error of its own."""
    try:
        yield
    except Exception as error:
        if _interrupted:
            raise KeyboardInterrupt from error
        raise
