"""Signs of life from a thread."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress


@contextmanager
def repeating(function: Callable[[], object], seconds: float) -> Iterator[None]:
    """Call ``function`` every ``seconds`` from a thread during the block, whatever it raises."""
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
