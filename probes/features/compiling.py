"""``torch.compile`` of a backbone that encodes, where it is asked for (``--compile``)."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from typing import TypeVar

import torch
from torch import Tensor

SETTING = "CLIPTEX_COMPILE"  # in the environment, so that processes side by side have it too
Result = TypeVar("Result")
log = logging.getLogger("cliptex.encode")


def wanted() -> bool:
    """Whether backbones are to be compiled. It rounds differently: what is kept is then kept under
    another key."""
    return os.environ.get(SETTING, "") not in ("", "0")


def identity() -> dict[str, bool]:
    """What the identity of kept features says of it."""
    return {"compiled": True} if wanted() else {}


def compiled(function: Callable[[Tensor], Result], name: str) -> Callable[[Tensor], Result]:
    """``function`` by way of ``torch.compile`` where that is wanted and possible, else itself.

    Compiling happens at the first call. Where it fails (no compiler on this machine, say) that is
    one line in the log, and the function runs as it is. An error of the function itself is raised
    as without compiling.

    Args:
        name: of what is compiled, for the log.
    """
    if not wanted():
        return function
    quick = torch.compile(function)

    def run(images: Tensor) -> Result:
        nonlocal quick
        try:
            return quick(images)
        except (
            Exception
        ) as error:  # of many kinds: what is missing is found by whatever needs it first
            if quick is function:
                raise
            result = function(images)  # raises if it is its own error
            quick, reason = function, (str(error).splitlines() or [""])[0][:160]
            log.warning("%s runs uncompiled: %s: %s", name, type(error).__name__, reason)
            return result

    return run
