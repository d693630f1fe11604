"""``python -m benchmark`` and the console script ``cliptex-benchmark``."""

from __future__ import annotations

import os
import signal
from typing import NoReturn


def entry() -> NoReturn:
    """Run the process's command and exit with its code; secrets are redacted in its output."""
    # During the imports there is nothing to save: Ctrl-C ends the process at once, without a
    # traceback.
    signal.signal(signal.SIGINT, lambda number, frame: os._exit(128 + number))

    from benchmark.cli.main import main
    from benchmark.execution import interrupts, streams

    streams.install()
    code = main()
    interrupts.exit_on_next_signal(code)
    raise SystemExit(code)


if __name__ == "__main__":
    entry()
