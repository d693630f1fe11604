"""The file that a training resumes from: replaced atomically, and read only by a training of the
same key."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from cliptex_common.files import atomic_write


def save_state(path: Path, key: str, state: Mapping[str, Any]) -> None:
    """Replace the state of the training ``key``."""
    with atomic_write(path) as temporary:
        torch.save({"key": key, **state}, temporary)


def load_state(path: Path, key: str, warn: Callable[[str], object]) -> dict[str, Any] | None:
    """The state of the training ``key``, on the CPU; None where there is none. One that is damaged
    or of another training is not used, and ``warn`` gets the reason."""
    if not path.is_file():
        return None
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # of many types: a damaged file breaks torch, zip or pickle
        warn(f"cannot read {path} ({error}): starting anew")
        return None
    if state.get("key") != key:
        warn(f"{path} is of another training: starting anew")
        return None
    return state
