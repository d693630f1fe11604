"""The state of a training that is under way, on disk: whole or not at all."""

from __future__ import annotations

import contextlib
import pickle
from pathlib import Path
from typing import Any

import torch

from backbones.files import replacing


def save_state(path: Path, state: dict[str, Any]) -> None:
    """Write ``state`` (tensors, numbers, strings and containers of them), beside its place and renamed.

    Raises:
        UserError: the disk is full or the folder cannot be written.
    """
    with replacing(path) as temporary:
        torch.save(state, temporary)


def load_state(path: Path, key: str) -> dict[str, Any] | None:
    """The state of the training ``key``; None when there is none, or only that of another training."""
    if not path.is_file():
        return None
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (RuntimeError, OSError, EOFError, ValueError, pickle.UnpicklingError):
        return None  # unreadable: begin again rather than never
    return state if state.get("key") == key else None


def remove_state(path: Path) -> None:
    """Remove the state, and its folder when nothing else is in it."""
    path.unlink(missing_ok=True)
    with contextlib.suppress(OSError):
        path.parent.rmdir()
