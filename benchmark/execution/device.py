"""The device of a unit of work: checked when it is submitted, chosen where it runs."""

from __future__ import annotations

import functools
import os
import platform
from contextlib import suppress
from pathlib import Path

import torch

from benchmark.execution.unit import GPUS
from common.errors import UserError


def check_device(name: str, is_local: bool) -> None:
    """Raise ``UserError`` for a device that torch does not know or, if work runs on this machine,
    that it does not have."""
    if name == "auto":
        return
    try:
        kind = torch.device(name).type
        available = kind == "cpu" or torch.get_device_module(kind).is_available()
    except (RuntimeError, AttributeError):
        raise UserError(f"no device {name!r}; use cpu, cuda or auto") from None
    if is_local and not available:
        raise UserError(f"no device {name!r} on this machine; use cpu or auto")


def choose_device(name: str) -> torch.device:
    """The device called ``name``; for ``auto`` the first GPU, or the CPU if there is none.

    Raises:
        UserError: the device does not exist, or this unit was assigned a GPU that torch does not
            find: it would compute on the CPU for days.
    """
    check_device(name, is_local=True)
    if name != "auto":
        return torch.device(name)
    if torch.cuda.is_available():
        return torch.device("cuda")
    if os.environ.get(GPUS, "0") != "0":
        visible = os.environ.get("CUDA_VISIBLE_DEVICES")
        raise UserError(
            f"this task was assigned a GPU (CUDA_VISIBLE_DEVICES={visible}) but torch finds none;"
            " use --device cpu"
        )
    return torch.device("cpu")


@functools.cache
def device_kind(device: torch.device) -> str:
    """Name of the hardware, for comparing speeds: ``NVIDIA H100 80GB HBM3``,
    ``Intel(R) Xeon(R) Platinum 8480C``."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
