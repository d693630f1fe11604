"""The device to compute on, chosen where the work runs."""

from __future__ import annotations

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
