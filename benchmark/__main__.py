"""``python -m benchmark`` and the console script ``cliptex-benchmark``."""

from __future__ import annotations

import atexit
import gc
import os
import signal
import sys
from pathlib import Path
from typing import NoReturn


def entry() -> NoReturn:
    """Run the process's command and exit with its code; secrets are redacted in its output."""
    # imports make objects that stay: looking for garbage among them takes a sixth of their time
    gc.set_threshold(50_000, 20, 20)
    # Registered first, called last: from then on Python's own handlers would end the process by
    # the signal, and the exit code of a finished command would be lost.
    for number in (signal.SIGINT, signal.SIGTERM):
        atexit.register(signal.signal, number, signal.SIG_IGN)
    # During the imports there is nothing to save: Ctrl-C ends the process at once, without a
    # traceback.
    signal.signal(signal.SIGINT, lambda number, frame: os._exit(128 + number))

    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:  # closed by `>&-`
            setattr(sys, name, Path(os.devnull).open("w"))  # noqa: SIM115

    from benchmark.parser import main
    from benchmark.unit import exit_on_next_signal, redact_streams

    redact_streams()
    code = main()
    exit_on_next_signal(code)
    raise SystemExit(code)


if __name__ == "__main__":
    entry()
