"""The device of a unit of work, chosen where it runs, and the precision that it prefers."""

from __future__ import annotations

import os

import torch

from benchmark.execution.options import ExecutionOptions
from benchmark.execution.unit import GPUS
from cliptex_common.device import (
    Device,
    current_device,
    is_accelerator,
    is_available,
    planned_device,
    prefers_bf16,
)
from cliptex_common.errors import UserError
from cliptex_common.settings import Precision
from cliptex_common.visible_devices import describe_variables, is_accelerator_name


def choose_device(name: str) -> torch.device:
    """The device called ``name``; for ``auto`` the accelerator of this machine, or the CPU if there
    is none or this unit was assigned none.

    Raises:
        UserError: the device does not exist, or this unit was assigned a GPU that torch does not
            find: it would compute on the CPU for days.
    """
    if name != "auto":
        if not is_available(name):
            raise UserError(f"no device {name!r} on this machine; use cpu or auto")
        return torch.device(name)
    assigned = os.environ.get(GPUS)
    device = torch.device("cpu") if assigned == "0" else current_device()
    if assigned not in (None, "0") and not is_accelerator(device):
        raise UserError(
            f"this task was assigned a GPU ({describe_variables() or 'of all'}) but torch finds"
            " none; use --device cpu"
        )
    return device


def decide_precision(options: ExecutionOptions, option: str = "--set") -> tuple[Precision, str]:
    """What replaces the setting ``precision=auto``: bf16 where the units' device is an accelerator
    that computes in it, else fp32.

    That device is the one of ``options``; if it is ``auto``, an accelerator on a cluster, else what
    this machine has. If this machine has no such device, the precision stays ``auto``, and a worker
    is asked (``benchmark.probing.submit.ask_for_precision``).

    Args:
        option: the option that changes a task's settings, which the note names.

    Returns:
        the precision, and a note to print.
    """
    device: Device = options.device
    if device == "auto":
        is_cluster = options.executor == "slurm" or "address" in options.executor_arg
        device = planned_device() if is_cluster else current_device()
    if not is_available(device):
        choice = f"{option} precision=fp32 or bf16 decides"
        return "auto", f"precision bf16 if the workers' {device} computes in it ({choice})"
    name = str(device) if is_accelerator_name(str(device)) else "the CPU"
    precision: Precision = "bf16" if prefers_bf16(device) else "fp32"
    opposite = "fp32" if precision == "bf16" else "bf16"
    return precision, f"precision {precision} on {name} ({option} precision={opposite})"
