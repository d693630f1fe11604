"""The processes of one training: one, or as many as torchrun started."""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import distributed

from backbones.cliptex.training.contrastive import world
from common.errors import UserError


@dataclass(frozen=True)
class DistContext:
    """This process among the others: ``rank`` of ``world``, computing on ``device``."""

    rank: int
    world: int
    device: torch.device

    @property
    def first(self) -> bool:
        return self.rank == 0

    def share(self, value: Any) -> Any:
        """What the first process passes in, on every process."""
        if self.world == 1:
            return value
        box = [value]
        distributed.broadcast_object_list(box)
        return box[0]

    def gather(self, value: Any) -> list[Any]:
        """What every process passes in, in rank order, on every process."""
        if self.world == 1:
            return [value]
        values: list[Any] = [None] * self.world
        distributed.all_gather_object(values, value)
        return values

    def wait(self) -> None:
        """Until every process is here."""
        if self.world > 1:
            distributed.barrier()


def of_torchrun() -> dict[str, int]:
    """What torchrun says of this process: RANK, LOCAL_RANK, WORLD_SIZE, where they are set. Raises
    ``UserError``: no numbers."""
    found = {
        name: os.environ[name]
        for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE")
        if name in os.environ
    }
    for name, text in found.items():
        if not text.isdecimal():
            raise UserError(
                f"{name}={text!r} in the environment is no number of torchrun's; unset {name}"
            )
    if int(found.get("WORLD_SIZE", 1)) > 1 and "RANK" not in found:
        raise UserError(
            "WORLD_SIZE without RANK in the environment: start under torchrun, or unset WORLD_SIZE"
        )
    return {name: int(text) for name, text in found.items()}


def first_process() -> bool:
    """Whether this process speaks for all, before the group is formed: the only one, or the first
    of torchrun's. Raises ``UserError`` as ``of_torchrun``."""
    return of_torchrun().get("RANK", 0) == 0


def end_with_launcher() -> None:
    """Let this process end when torchrun, which started it, is gone (kill -9): it would wait half
    an hour for a meeting point that torchrun kept, and hold the lock for which the same command,
    started again, waits. Without torchrun: nothing."""
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        return
    launcher = os.getppid()
    if (
        os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    ):  # the meeting point is torchrun's: it may be gone already
        try:
            socket.create_connection(
                (os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])), timeout=60
            ).close()
        except ConnectionRefusedError:
            os._exit(1)

    def watch() -> None:
        while os.getppid() == launcher:
            time.sleep(1)
        os._exit(1)

    threading.Thread(target=watch, daemon=True, name="launcher").start()


@contextmanager
def processes(device: str | torch.device) -> Iterator[DistContext]:
    """Join the processes that torchrun started (NCCL on GPUs, gloo on CPUs), and leave them at the
    end.

    Without torchrun's environment this is the only process. A group that exists already is used and
    left alone.
    """
    device, told = torch.device(device), of_torchrun()
    if device.type == "cuda" and "LOCAL_RANK" in told:
        device = torch.device("cuda", told["LOCAL_RANK"])
        torch.cuda.set_device(device)
    ours = told.get("WORLD_SIZE", 1) > 1 and not distributed.is_initialized()
    if ours:
        distributed.init_process_group("nccl" if device.type == "cuda" else "gloo")
    try:
        yield DistContext(*world(), device)
    finally:
        if ours:
            distributed.destroy_process_group()
