"""What the tests of executors let workers do; imports little, since each worker does so anew."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

from common.errors import UserError


def doubled(number, seconds=0.0):
    began = time.time()
    time.sleep(seconds)
    return 2 * number, began, time.time(), str(Path.cwd())


def told(number):
    from benchmark.execution.progress import console, reporter

    reporter().start("telling", 3)
    reporter().advance(2)
    console.print(f"said by {number}: [bold] :car:", markup=False, emoji=False)
    return os.getpid()


def chatty(marker):
    """Says half a line, waits to be read, says the rest."""
    from benchmark.execution.progress import console

    console.print("first\nhalf ", end="")
    until(marker)
    console.print("a line")


def mistake():
    raise UserError("no such thing; take another")


def wrapped():
    try:
        raise KeyError("no such thing")
    except KeyError as error:
        raise ValueError("a task broke") from error


class Stubborn(Exception):
    """Cannot be pickled."""

    def __init__(self, message):
        super().__init__(message)
        self.held = lambda: None


class StubbornMistake(UserError):
    """Can be pickled, but not be read again."""

    def __init__(self, what, remedy):
        super().__init__(f"{what}; {remedy}")


def stubborn():
    raise Stubborn("it does not travel")


def stubborn_mistake():
    raise StubbornMistake("no such thing", "take another")


def unportable():
    return lambda: None


def leave():
    raise SystemExit(3)


def wait(marker):
    """Until it is interrupted; then it saves."""
    Path(marker).write_text(str(os.getpid()))
    try:
        time.sleep(600)
    except KeyboardInterrupt:
        Path(marker).with_suffix(".saved").touch()
        raise


def wait_once(marker):
    """Interrupted or killed the first time; the second time it goes on from what was saved. Returns
    its attempts."""
    with Path(marker).open("a") as file:
        file.write(f"{os.environ.get('SLURM_JOB_ID', os.getpid())} {node()}\n")
    runs = Path(marker).read_text().split("\n")[:-1]
    if len(runs) == 1:
        wait(Path(marker).with_suffix(".waiting"))
    return runs


def node():
    if "SLURMD_NODENAME" in os.environ:
        return os.environ["SLURMD_NODENAME"]
    import ray

    return ray.get_runtime_context().get_node_id() if ray.is_initialized() else ""


def vanish(marker, times):
    from benchmark.execution.progress import console

    with Path(marker).open("a") as file:
        file.write("x")
    console.print(f"attempt {len(Path(marker).read_text())}")
    if len(Path(marker).read_text()) <= times:
        os.kill(os.getpid(), signal.SIGKILL)
    return "there"


def number_of_threads():
    import numpy  # noqa: F401
    import torch
    from threadpoolctl import threadpool_info

    return torch.get_num_threads(), max(pool["num_threads"] for pool in threadpool_info())


def visible(folder=None, all_of_them=0):
    """Which GPUs it sees, once ``all_of_them`` tasks run at the same time."""
    began = time.time()
    if folder:
        (Path(folder) / str(os.getpid())).touch()
        end = time.monotonic() + 60
        while len(list(Path(folder).iterdir())) < all_of_them:
            if time.monotonic() > end:
                raise TimeoutError(
                    f"{len(list(Path(folder).iterdir()))} of {all_of_them} run at the same time"
                )
            time.sleep(0.05)
    time.sleep(0.2)
    return os.environ.get("CUDA_VISIBLE_DEVICES"), began, time.time()


def visible_in_process():
    return os.getpid(), os.environ.get("CUDA_VISIBLE_DEVICES")


def variable(name):
    import json

    import ray

    written = ray.get_runtime_context().runtime_env
    return os.environ.get(name), name in json.dumps(written)


def visible_on_node(folder, all_of_them):
    gpus, *_ = visible(folder, all_of_them)
    return [f"{node()} {gpu}" for gpu in gpus.split(",")]


def device():
    from benchmark.cost import choose_device

    return str(choose_device("auto"))


def slow_to_end(seconds, *earlier):
    """Which of the ``earlier`` processes are still there; this one takes its time to end."""
    from multiprocessing.util import Finalize

    Finalize(None, time.sleep, (seconds,), exitpriority=0)
    return os.getpid(), [pid for pid in earlier if Path(f"/proc/{pid}").exists()]


def noted(log, name, marker=None):
    with Path(log).open("a") as file:
        file.write(f"{name}\n")
    if marker:
        until(marker)


def until(marker, seconds=60.0):
    end = time.monotonic() + seconds
    while not Path(marker).exists():
        if time.monotonic() > end:
            raise TimeoutError(f"no {marker}")
        time.sleep(0.02)


def driver(executor, folder):
    """Two tasks that wait, in a process of its own that somebody interrupts or kills."""
    from benchmark.execution import Bar, ExecutorSpec, interrupts, make_executor

    interrupts.install()
    settings = {"cpus": "2"} if executor == "local" else {"num_cpus": "2"}
    try:
        with make_executor(ExecutorSpec(executor, settings), Bar()) as engine:
            for each in [engine.submit(wait, Path(folder) / name) for name in ("one", "two")]:
                each.result()
    except KeyboardInterrupt:
        raise SystemExit(130) from None


if __name__ == "__main__":
    import sys

    from tests.benchmark.execution.tasks import (
        driver,
    )  # tasks are functions of a module, and not of a script

    driver(*sys.argv[1:])
