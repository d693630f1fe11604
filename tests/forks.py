"""Processes that a test can kill or run side by side, forked from a server that has imported
everything once: an import of torch, MMLab and MLflow takes longer than what such a process does."""

from __future__ import annotations

import multiprocessing
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(
    [
        "benchmark.catalog",
        "benchmark.stages.labels",
        "benchmark.stages.weights",
        "tests.sweeps.cheap",
        "mlflow.tracking",
    ]
)


class Fork:
    """``target(*arguments)`` in a process of its own, of one thread, in the working directory and
    environment of now.

    Args:
        output: where its standard output and errors go.
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
        place = (str(Path.cwd()), {**os.environ, **(environment or {})}, str(output))
        self.process = FORKS.Process(target=_run, args=(place, target, arguments))
        self.process.start()

    def wait_for(self, folder: Path, pattern: str, seconds: float = 120.0) -> None:
        """Until a file like ``pattern`` is in ``folder``; fails the test when the process ends
        without it."""
        end = time.monotonic() + seconds
        while not list(folder.glob(pattern)):
            assert self.process.is_alive() or list(folder.glob(pattern)), self.said()
            assert time.monotonic() < end, f"no {pattern} in {folder}: {self.said()}"
            time.sleep(0.005)

    def signal(self, number: int) -> None:
        """Send a signal."""
        os.kill(self.process.pid, number)

    def end(self, seconds: float = 120.0) -> int:
        """Wait for its end and its loading processes', which hold its locks; the exit code,
        negative for a signal."""
        end = time.monotonic() + seconds
        self.process.join(seconds)
        while self.process.is_alive() or alive(self.process.pid):
            assert time.monotonic() < end, f"it did not end: {self.said()}"
            time.sleep(0.02)
        assert self.process.exitcode is not None
        return self.process.exitcode

    def said(self) -> str:
        """Its standard output and errors so far."""
        return self.output.read_text(errors="replace") if self.output.exists() else ""


def alive(session: int) -> bool:
    """Whether any process of a session is still there."""
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
    from benchmark.__main__ import main

    sys.exit(main(words))


def ranks(target: Callable[..., Any], *arguments: Any, output: Path, count: int = 2) -> None:
    """``target(*arguments)`` in processes with the environment that torchrun gives them; all must
    end well."""
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
    codes = [fork.end(240) for fork in forks]
    assert not any(codes), "\n".join(fork.said()[-3000:] for fork in forks)
    output.write_text("".join(fork.said() for fork in forks))


def _run(
    place: tuple[str, dict[str, str], str], target: Callable[..., Any], arguments: tuple[Any, ...]
) -> None:
    os.setsid()
    folder, environment, output = place
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    descriptor = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    import torch

    torch.set_num_threads(1)
    target(*arguments)
