"""What all nodes must share with the driver: checked on each, before the work of a task, and said in one line."""

from __future__ import annotations

import functools
import socket
from collections.abc import Mapping
from pathlib import Path

from backbones.errors import UserError
from reports.tracking import environment


@functools.cache
def software() -> Mapping[str, str]:
    """The commit and the versions that a number depends on."""
    found = environment()
    return {"git.commit": found["git.commit"], "python": found["python"], **found["packages"]}


def must_share(folder: Path, driver: Mapping[str, str]) -> None:
    """Raises ``UserError`` when this node does not see ``folder``, which the driver has made, or has other software."""
    node, here = socket.gethostname(), software()
    if not folder.is_dir():
        raise UserError(
            f"node {node} does not see {folder.parent}; set CLIPTEX_HOME to a folder that all nodes share, under one path"
        )
    other = [
        f"{name} {here.get(name) or 'none'} (there {version or 'none'})"
        for name, version in driver.items()
        if here.get(name) != version
    ]
    if other:
        raise UserError(
            f"node {node} has other software than the machine that submits: {', '.join(other)}; use one environment and "
            "checkout on all"
        )
