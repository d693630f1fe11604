"""Processes that a test can kill or run concurrently.

They are forked from a server that has imported torch, MMLab and MLflow once.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.kit.waiting import is_soon

FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(
    [
        "benchmark.catalog",
        "benchmark.stages",
        "tests.sweeps.cheap",
        "mlflow.tracking",
    ]
)


class Fork:
    """``target(*arguments)`` in a single-threaded process of its own.

    Args:
        output: file for its standard output and errors.
        environment: added to this process's.
    """

    def __init__(
        self,
        target: Callable[..., Any],
        *arguments: Any,
        output: Path,
        environment: dict[str, str] | None = None,
    ) -> None:
        self.output = output
        context = (str(Path.cwd()), {**os.environ, **(environment or {})}, str(output))
        self.process = FORKS.Process(target=_run, args=(context, target, arguments))
        self.process.start()

    def wait_for(self, folder: Path, pattern: str, seconds: float = 500.0) -> None:
        """Wait for a file like ``pattern`` in ``folder``; fails if the process ends before."""

        def written() -> bool:
            return any(folder.glob(pattern))

        over = is_soon(lambda: written() or not self.process.is_alive(), seconds, every=0.005)
        assert over and written(), f"no {pattern} in {folder}: {self.text()}"

    def signal(self, number: int) -> None:
        """Send a signal."""
        os.kill(self.process.pid, number)

    def end(self, seconds: float = 500.0) -> int:
        """Wait for it and its loading processes, which hold its locks; returns the exit code."""
        self.process.join(seconds)
        over = is_soon(lambda: not (self.process.is_alive() or alive(self.process.pid)), seconds)
        assert over, f"it did not end: {self.text()}"
        assert self.process.exitcode is not None
        return self.process.exitcode

    def text(self) -> str:
        """Its standard output and errors so far."""
        return self.output.read_text(errors="replace") if self.output.exists() else ""


def alive(session: int) -> bool:
    """Whether any process of a session still runs."""
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue
            if int(fields[3]) == session and fields[0] != "Z":
                return True
    return False


def command(*words: str) -> None:
    """``python -m benchmark WORDS``, as the target of a ``Fork``."""
    from benchmark.parser import main

    sys.exit(main(words))


def ranks(target: Callable[..., Any], *arguments: Any, output: Path, count: int = 2) -> None:
    """Run ``target(*arguments)`` in processes with torchrun's environment; all must succeed."""
    from tests.servers import free_port

    group = {"WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    forks = [
        Fork(
            target,
            *arguments,
            output=output.with_suffix(f".{rank}"),
            environment={**group, "RANK": rank, "LOCAL_RANK": rank},
        )
        for rank in map(str, range(count))
    ]
    codes = [fork.end() for fork in forks]
    assert not any(codes), "\n".join(fork.text()[-3000:] for fork in forks)
    output.write_text("".join(fork.text() for fork in forks))


def _run(
    context: tuple[str, dict[str, str], str], target: Callable[..., Any], arguments: tuple[Any, ...]
) -> None:
    os.setsid()
    signal.signal(signal.SIGHUP, signal.SIG_DFL)  # the tests may run under nohup
    folder, environment, output = context
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    descriptor = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    import torch

    torch.set_num_threads(1)
    target(*arguments)
