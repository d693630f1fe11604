"""The processes of one training: one, or as many as torchrun or SLURM started."""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
from torch import Tensor, distributed

from cliptex_common.device import device_count, is_accelerator, set_device

# how long processes wait for the first one, which may export weights to a slow disk
PATIENCE = timedelta(hours=2)


@dataclass(frozen=True)
class DistContext:
    """This process: ``rank`` of ``world`` processes, computing on ``device``."""

    rank: int
    world: int
    device: torch.device

    @property
    def first(self) -> bool:
        return self.rank == 0

    def share(self, value: Any) -> Any:
        """The first process's value, on every process."""
        values = [value]
        if self.world > 1:
            distributed.broadcast_object_list(values)
        return values[0]

    def gather(self, value: Any) -> list[Any]:
        """Every process's value, in rank order, on every process."""
        values = [value] * self.world
        if self.world > 1:
            distributed.all_gather_object(values, value)
        return values

    def wait(self) -> None:
        """Wait until every process is here."""
        if self.world > 1:
            distributed.barrier()


def world() -> tuple[int, int]:
    """(rank, number of processes); (0, 1) without torch.distributed."""
    if distributed.is_available() and distributed.is_initialized():
        return distributed.get_rank(), distributed.get_world_size()
    return 0, 1


def sum_over_ranks(values: Tensor) -> Tensor:
    """Sum of a tensor without gradient over all ranks, on all ranks."""
    if world()[1] > 1:
        values = values.clone()
        distributed.all_reduce(values)
    return values


def torchrun_environment() -> dict[str, int]:
    """RANK, LOCAL_RANK and WORLD_SIZE, where torchrun, or submitit in a SLURM job, has set them."""
    names = ("RANK", "LOCAL_RANK", "WORLD_SIZE")
    return {name: int(os.environ[name]) for name in names if name in os.environ}


def first_process() -> bool:
    """Whether this is the only process or the first of several; needs no process group."""
    return torchrun_environment().get("RANK", 0) == 0


def end_with_launcher() -> None:
    """End this process when torchrun, which started it, is gone (kill -9).

    Otherwise it would wait half an hour for torchrun's rendezvous, and hold the lock that the same
    command waits for when it is started again. Does nothing without torchrun.
    """
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        return
    launcher = os.getppid()
    # the store of the rendezvous is torchrun's own: it may be gone already
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True":
        address = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
        try:
            socket.create_connection(address, timeout=60).close()
        except ConnectionRefusedError:
            os._exit(1)

    def watch() -> None:
        while os.getppid() == launcher:
            time.sleep(1)
        os._exit(1)

    threading.Thread(target=watch, daemon=True, name="launcher").start()


@contextmanager
def processes(device: str | torch.device) -> Iterator[DistContext]:
    """Join the processes of this training, by torch's backend for ``device``, and leave at the end.

    Without the environment of ``torch.distributed`` this is the only process. A group that exists
    already is used and left alone.
    """
    device, environment = torch.device(device), torchrun_environment()
    if is_accelerator(device) and "LOCAL_RANK" in environment:
        # SLURM may show each process its own accelerator alone
        device = torch.device(device.type, environment["LOCAL_RANK"] % (device_count() or 1))
        set_device(device)
    created = environment.get("WORLD_SIZE", 1) > 1 and not distributed.is_initialized()
    if created:
        backend = distributed.get_default_backend_for_device(device)
        distributed.init_process_group(backend, timeout=PATIENCE)
    try:
        yield DistContext(*world(), device)
    finally:
        if created:
            distributed.destroy_process_group()
