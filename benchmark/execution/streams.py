"""Standard streams that hide secrets, whoever writes to them, and degrade what their encoding does
not have."""

from __future__ import annotations

import io
import re
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from common.secrets import redact

CONTROL = re.compile("[\x00-\x07\x0e-\x1a\x1c-\x1f\x7f-\x9f]|\x1b(?![\\[])")


class Discreet:
    """A text stream without secrets; all else is that of ``stream``."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        # a terminal would obey what a name tells it; of its codes only colours and those of the
        # progress bar may pass
        with self._named():
            self._stream.write(CONTROL.sub(lambda found: repr(found[0])[1:-1], redact(text)))
        return len(text)

    def flush(self) -> None:
        with self._named():
            self._stream.flush()

    @contextmanager
    def _named(self) -> Iterator[None]:
        """An error says what could not be written: a full disk behind ``> FILE``."""
        try:
            yield
        except OSError as error:
            error.filename = error.filename or "standard output"
            raise

    def writelines(self, lines: Iterable[str]) -> None:
        for line in lines:
            self.write(line)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def install() -> None:
    """Make this process's streams so, to its end: what libraries and tracebacks say goes through
    them too."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if isinstance(stream, io.TextIOWrapper):  # neither closed nor one of these already
            stream.reconfigure(errors="replace" if name == "stdout" else "backslashreplace")
            setattr(sys, name, Discreet(stream))


@contextmanager
def discreet() -> Iterator[None]:
    """``install`` while the block runs."""
    before = sys.stdout, sys.stderr
    install()
    try:
        yield
    finally:
        sys.stdout, sys.stderr = before
