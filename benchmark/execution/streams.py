"""Standard streams that hide secrets and replace characters that their encoding lacks."""

from __future__ import annotations

import io
import sys
from collections.abc import Iterable
from typing import Any

from cliptex_common.secrets import redact


class RedactingStream:
    """A text stream that hides secrets in everything written to ``stream``."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        self._stream.write(redact(text))
        return len(text)

    def writelines(self, lines: Iterable[str]) -> None:
        for line in lines:
            self.write(line)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def redact_streams() -> None:
    """Redact this process's standard streams from now on, for libraries and tracebacks too."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if isinstance(stream, io.TextIOWrapper):  # not redacted yet
            stream.reconfigure(errors="replace" if name == "stdout" else "backslashreplace")
            setattr(sys, name, RedactingStream(stream))
