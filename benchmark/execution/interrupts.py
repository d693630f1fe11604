"""Ctrl-C, SIGTERM and SIGHUP as ``KeyboardInterrupt``.

A signal is remembered: one that goes to the whole process group also kills the loading processes,
whose death must not be taken for the failure of a unit.
"""

from __future__ import annotations

import logging
import os
import signal
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import FrameType

STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
_pid = os.getpid()
_received = 0
_ignored_after: tuple[int, ...] = ()  # the first signal; (): all but a second Ctrl-C


def handle_signals(*, once: bool = False, numbers: Sequence[int] = STOP_SIGNALS) -> None:
    """Let the signals ``numbers`` raise ``KeyboardInterrupt`` here, and end forked processes. After
    the first, others are ignored, except Ctrl-C after Ctrl-C: batch systems and shells send theirs
    twice, to the process and to its group, and must not disturb the saving that the first starts.

    Args:
        once: ignore a second Ctrl-C, too. A worker may get one with its process group and one from
            its parent.
    """
    global _pid, _received, _ignored_after
    _pid, _received, _ignored_after = os.getpid(), 0, tuple(numbers) if once else ()
    for number in numbers:
        if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:  # nohup
            signal.signal(number, _handle)


@contextmanager
def interruptible(numbers: Sequence[int] = STOP_SIGNALS) -> Iterator[None]:
    """``handle_signals(once=True)`` while the block runs; does nothing outside the main thread."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    handlers = {number: signal.getsignal(number) for number in numbers}
    handle_signals(once=True, numbers=numbers)
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler if handler is not None else signal.SIG_DFL)


def exit_on_next_signal(code: int) -> None:
    """Let the next signal end the process at once with ``code``: nothing is left to save."""
    for number in STOP_SIGNALS:
        signal.signal(number, lambda *_: os._exit(code))


def received() -> int:
    """The number of the signal received since ``handle_signals``, or 0."""
    return _received


def _handle(number: int, frame: FrameType | None) -> None:
    global _received
    if os.getpid() != _pid:
        os._exit(128 + number)
    _received = number
    if _is_importing(frame):  # an exception would be swallowed, or leave a half-imported library
        threading.Timer(0.05, os.kill, (_pid, number)).start()
        return
    for each in _ignored_after or {*STOP_SIGNALS} - ({signal.SIGINT} & {number}):
        signal.signal(each, signal.SIG_IGN)
    logging.getLogger("asyncio").disabled = True  # tracebacks of tasks that end by this
    raise KeyboardInterrupt


def _is_importing(frame: FrameType | None) -> bool:
    while frame is not None and frame.f_code.co_filename != "<frozen importlib._bootstrap>":
        frame = frame.f_back
    return frame is not None


@contextmanager
def as_interrupt() -> Iterator[None]:
    """Turn an error raised after a signal into the interruption."""
    try:
        yield
    except Exception as error:
        if _received:
            raise KeyboardInterrupt from error
        raise
