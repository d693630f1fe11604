"""The device to compute on, chosen where the work runs; its kind, and how much memory a stretch of
work took on it."""

from __future__ import annotations

import functools
import os
import platform
import resource
from contextlib import suppress
from pathlib import Path

import torch

from benchmark.execution.task import GPUS
from common.errors import UserError


def choose_device(name: str) -> torch.device:
    """``auto`` is the first GPU where there is one, else the CPU, unless this is a task that was
    given a GPU: that would compute on the CPU for days. Raises ``UserError`` for a device that is
    not there."""
    if name == "auto":
        if not torch.cuda.is_available() and os.environ.get(GPUS, "0") != "0":
            seen = os.environ.get("CUDA_VISIBLE_DEVICES")
            raise UserError(
                f"this task was given a GPU (CUDA_VISIBLE_DEVICES={seen}), where torch finds none;"
                " use --device cpu"
            )
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(1, device=device).item()  # which ``meta`` has none of
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise UserError(
            f"no device {name!r} here ({str(error).splitlines()[0]}); use cpu, cuda or auto"
        ) from None
    return device


@functools.cache
def device_kind(device: torch.device) -> str:
    """What kind of device it is, for comparing speeds: ``NVIDIA H100 80GB HBM3``,
    ``Intel(R) Xeon(R) Platinum 8480C``."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def reset_peak(device: torch.device) -> None:
    """Begin a new stretch (on Linux and CUDA; elsewhere the peak is that of the whole process)."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def peak_mb(device: torch.device) -> float:
    """Peak memory in MB since ``reset_peak``: of the GPU for CUDA, else resident memory of this
    process (no workers)."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e6
    with suppress(OSError, StopIteration, ValueError):
        lines = Path("/proc/self/status").read_text().splitlines()
        return int(next(line for line in lines if line.startswith("VmHWM")).split()[1]) * 1024 / 1e6
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6
