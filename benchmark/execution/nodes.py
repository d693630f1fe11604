"""Several nodes: what all of them must share, refused in one line before work where they do not."""

from __future__ import annotations

import functools
import socket
from collections.abc import Mapping
from typing import TYPE_CHECKING

from backbones.errors import UserError
from reports.tracking import environment

if TYPE_CHECKING:
    from benchmark.execution.base import Executor


def check_store(executor: Executor, tracking_uri: str, option: str = "--tracking-uri") -> None:
    """Raises ``UserError`` for a database file that tasks on other nodes would write to."""
    if executor.several_nodes and tracking_uri.startswith("sqlite:"):
        raise UserError(
            f"--executor {executor.spec.name} runs tasks on other machines, which cannot share the file {tracking_uri}; start "
            f"`mlflow server` and give {option} http://HOST:PORT"
        )


@functools.cache
def software() -> Mapping[str, str]:
    """The commit and the versions that a number depends on."""
    found = environment()
    return {"git.commit": found["git.commit"], "python": found["python"], **found["packages"]}


def same_software(driver: Mapping[str, str]) -> None:
    """Raises ``UserError`` when this node's software is not the driver's."""
    here = software()
    differing = [f"{name} {here.get(name, 'none')} (driver: {version})" for name, version in driver.items() if here.get(name) != version]
    if differing:
        raise UserError(
            f"node {socket.gethostname()} has other software than the machine that submits: {', '.join(differing[:4])}; "
            "use one environment and one checkout on all nodes"
        )
