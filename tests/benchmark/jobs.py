"""What the tests of ``side_by_side`` let processes do; imports little, since each process does so anew."""

from __future__ import annotations

import os
import signal
import time


def square(*, number, bar):
    import torch

    from benchmark.execution.progress import console

    bar.start("squaring", 2)
    bar.advance(2)
    console.print(f"said by {number}")
    return number**2, os.getpid(), torch.get_num_threads()


def noted(*, log, name, bar, before=None, seconds=0.0):
    import torch

    time.sleep(seconds)
    with log.open("a") as file:
        file.write(f"{name}\n")
    return f"{before[0]} < {name}" if before else name, torch.get_num_threads()


def mistake(*, bar):
    from backbones.errors import UserError

    raise UserError("no such thing; take another")


def wait(*, marker, bar):
    marker.write_text(str(os.getpid()))
    bar.start("waiting", 1)
    try:
        time.sleep(600)
    except KeyboardInterrupt:
        marker.with_suffix(".saved").touch()
        raise


def wrapped(*, bar):
    try:
        raise ValueError("no such thing")
    except ValueError as error:
        raise RuntimeError("a task broke") from error


def leave(*, bar):
    raise SystemExit(0)


def unportable(*, bar):
    return lambda: None


def vanish(*, bar):
    os.kill(os.getpid(), signal.SIGKILL)
