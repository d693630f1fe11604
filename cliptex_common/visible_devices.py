"""Which cores and accelerators a process sees, and what the latter are called: without importing
torch, because the variables must be set before torch starts."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping

DEVICE_NAMES = "auto, cpu, or an accelerator as torch names it (cuda, cuda:1, xpu, mps)"
# variables that restrict a process to some accelerators, by torch's type of device. HIP, which
# torch calls by the name of CUDA, reads both variables of its type, the second one first.
VARIABLES: Mapping[str, tuple[str, ...]] = {
    "cuda": ("CUDA_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES"),
    "xpu": ("ZE_AFFINITY_MASK",),
}
# variables that hide all accelerators when they are empty; an empty ZE_AFFINITY_MASK shows all
HIDING = VARIABLES["cuda"]
DRIVER_TOOLS = ("nvidia-smi", "amd-smi", "rocm-smi", "xpu-smi")  # installed with a driver


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def is_accelerator_name(name: str) -> bool:
    """Whether ``--device name`` requests an accelerator; ``auto`` takes what there is."""
    return name.partition(":")[0] not in ("auto", "cpu")


def visible(kind: str, count: int) -> list[str]:
    """What the variables of this process say for each of its ``count`` accelerators of a type."""
    numbers = list(map(str, range(count)))
    for variable in reversed(VARIABLES.get(kind, ())):
        if os.environ.get(variable):
            return os.environ[variable].split(",")[:count]
    return numbers


def showing_only(kind: str, number: str) -> dict[str, str]:
    """The environment of a process that sees only the accelerator ``number`` (of ``visible``)."""
    return dict.fromkeys(VARIABLES.get(kind, ()), number)


def hiding_all() -> dict[str, str]:
    """The environment of a process that sees no accelerator, where a variable can hide them."""
    return dict.fromkeys(HIDING, "")


def visibility() -> str:
    """The variables of this process as ``NAME=value``, those that are set."""
    names = (name for names in VARIABLES.values() for name in names if name in os.environ)
    return ", ".join(f"{name}={os.environ[name]}" for name in names)


def toolkit_versions() -> dict[str, str | None]:
    """Version of CUDA that torch was built with; None without it, or where torch is not loaded."""
    torch = sys.modules.get("torch")
    return {"cuda": torch.version.cuda if torch else None}
