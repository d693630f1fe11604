"""The device of a unit of work: checked when it is submitted, chosen where it runs."""

from __future__ import annotations

import os

import torch

from benchmark.execution.unit import GPUS
from cliptex_common.device import current_device, is_accelerator, is_available
from cliptex_common.errors import UserError
from cliptex_common.visible_devices import describe_variables


def check_device(name: str, is_local: bool) -> None:
    """Raise ``UserError`` for a device that torch does not know or, if work runs on this machine,
    that it does not have."""
    if name != "auto" and not is_available(name) and is_local:
        raise UserError(f"no device {name!r} on this machine; use cpu or auto")


def choose_device(name: str) -> torch.device:
    """The device called ``name``; for ``auto`` the accelerator of this machine, or the CPU if there
    is none or this unit was assigned none.

    Raises:
        UserError: the device does not exist, or this unit was assigned a GPU that torch does not
            find: it would compute on the CPU for days.
    """
    check_device(name, is_local=True)
    if name != "auto":
        return torch.device(name)
    assigned = os.environ.get(GPUS)
    device = torch.device("cpu") if assigned == "0" else current_device()
    if assigned not in (None, "0") and not is_accelerator(device):
        raise UserError(
            f"this task was assigned a GPU ({describe_variables() or 'of all'}) but torch finds"
            " none; use --device cpu"
        )
    return device
