"""Units for workers; imports little, since each worker does so anew."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

from cliptex_common.errors import UserError
from cliptex_common.files import write_text
from tests.kit.waiting import is_soon, wait_for


def doubled(number, seconds=0.0):
    start = time.time()
    time.sleep(seconds)
    return 2 * number, start, time.time(), str(Path.cwd())


def submission_script():
    from submitit import JobEnvironment

    return JobEnvironment().paths.submission_file.read_text()


def report_progress(number):
    from benchmark.progress import console, reporter

    reporter().start("step", 3)
    reporter().advance(2)
    console.print(f"printed by {number}: [bold] :car:")
    return os.getpid()


def print_slowly(marker):
    """Prints half a line, waits until it was read, prints the rest."""
    from benchmark.progress import console

    console.print("first\nhalf ", end="")
    wait_for(marker)
    console.print("a line")


def look_up_executor(name, payload):
    from benchmark.executor import EXECUTORS

    return EXECUTORS.find(name).about, EXECUTORS.origin(name), payload.number


def raise_user_error():
    raise UserError("no such dataset; choose another")


def raise_bug():
    try:
        raise KeyError("no such dataset")
    except KeyError as error:
        raise ValueError("a unit broke") from error


def raise_full_disk():
    try:
        raise OSError(28, "No space left on device", "weights")
    except OSError as error:
        raise RuntimeError("cannot save") from error


class UnpicklableError(Exception):
    def __init__(self, message):
        super().__init__(message)
        self.function = lambda: None


def raise_unpicklable():
    raise UnpicklableError("it does not travel")


def return_lambda():
    return lambda: None


def call_exit():
    raise SystemExit(3)


def sleep():
    """Ten minutes; a signal that comes just before it sleeps is seen soon after."""
    for _ in range(6000):
        time.sleep(0.1)


def wait(marker):
    """Waits until it is interrupted, then saves."""
    try:
        # the caller kills this process as soon as the file is there: never an empty one
        write_text(Path(marker), str(os.getpid()))
        sleep()
    except KeyboardInterrupt:  # perhaps while it writes
        write_text(Path(marker), str(os.getpid()))
        Path(marker).with_suffix(".saved").touch()
        raise


def wait_once(marker):
    """Waits to be interrupted or killed; the second attempt returns both attempts."""
    with Path(marker).open("a") as file:
        file.write(f"{os.environ.get('SLURM_JOB_ID', os.getpid())} {node()}\n")
    attempts = Path(marker).read_text().split("\n")[:-1]
    if len(attempts) == 1:
        wait(Path(marker).with_suffix(".waiting"))
    return attempts


def node():
    if "SLURMD_NODENAME" in os.environ:
        return os.environ["SLURMD_NODENAME"]
    import ray

    return ray.get_runtime_context().get_node_id() if ray.is_initialized() else ""


def kill_itself(marker, times):
    from benchmark.progress import console

    with Path(marker).open("a") as file:
        file.write("x")
    attempt = len(Path(marker).read_text())
    console.print(f"attempt {attempt}")
    if attempt <= times:
        os.kill(os.getpid(), signal.SIGKILL)
    return "survived"


def number_of_threads():
    import numpy  # noqa: F401
    import torch
    from threadpoolctl import threadpool_info

    return torch.get_num_threads(), max(pool["num_threads"] for pool in threadpool_info())


def visible_gpus(folder=None, count=0):
    """The GPUs that it sees, once ``count`` units run at the same time."""
    start = time.time()
    if folder:
        (Path(folder) / str(os.getpid())).touch()
        enough = is_soon(lambda: len(list(Path(folder).iterdir())) >= count)
        assert enough, f"fewer than {count} units run at the same time"
    time.sleep(0.2)
    return os.environ.get("CUDA_VISIBLE_DEVICES"), start, time.time()


def process_and_gpus():
    return os.getpid(), os.environ.get("CUDA_VISIBLE_DEVICES")


def variable(name):
    import json

    import ray

    runtime_env = ray.get_runtime_context().runtime_env
    return os.environ.get(name), name in json.dumps(runtime_env)


def gpus_on_node(folder, count):
    gpus, *_ = visible_gpus(folder, count)
    return [f"{node()} {gpu}" for gpu in gpus.split(",")]


def append_name(log, name, marker=None):
    with Path(log).open("a") as file:
        file.write(f"{name}\n")
    if marker:
        wait_for(marker)


def submit_two(executor, folder):
    """Two waiting units in a process of its own, to be interrupted or killed."""
    from benchmark import unit
    from tests.executors import executor_of

    signal.signal(signal.SIGHUP, signal.SIG_DFL)  # the tests may run under nohup
    unit.handle_signals()
    settings = {"cpus": "2"} if executor == "local" else {"num_cpus": "2"}
    try:
        with executor_of(executor, settings) as engine:
            for future in [engine.submit(wait, Path(folder) / name) for name in ("one", "two")]:
                future.result()
    except KeyboardInterrupt:
        raise SystemExit(130) from None


if __name__ == "__main__":
    import sys

    from tests.benchmark.executors import units  # units must not be functions of __main__

    units.submit_two(*sys.argv[1:])
