"""The device to compute on, chosen where the work runs."""

from __future__ import annotations

import functools
import platform
from contextlib import suppress
from pathlib import Path

import torch

from backbones.errors import UserError


def choose_device(name: str) -> torch.device:
    """``auto`` is the first GPU where there is one, else the CPU. Raises ``UserError`` for a device that is not there."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise UserError(f"no device {name!r} here ({str(error).splitlines()[0]}); use cpu, cuda or auto") from None
    return device


@functools.cache
def device_kind(device: torch.device) -> str:
    """What kind of device it is, for comparing speeds: ``NVIDIA H100 80GB HBM3``, ``Intel(R) Xeon(R) Platinum 8480C``."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
