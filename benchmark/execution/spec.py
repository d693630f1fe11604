"""The user's choice of an executor, and the error of a lost worker."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from cliptex_common.errors import UserError
from cliptex_common.visible_devices import is_accelerator_name


class WorkerLost(RuntimeError):
    """The worker of a unit died: it was killed, ran out of memory, or its node failed."""


@dataclass(frozen=True)
class ExecutorSpec:
    """The user's choice of an executor.

    Attributes:
        name: ``local``, ``slurm``, ``ray``, or one from another package.
        settings: ``--executor-arg`` key → value.
        jobs: maximum number of concurrent units; 0 for as many as the resources allow.
        device: ``auto``, ``cpu``, or an accelerator as torch names it, perhaps with its number.
        num_workers: loading processes of a unit; None for the executor's default.
        multi_node: a unit may compute in several processes and on several nodes (``nodes=2``).
    """

    name: str = "local"
    settings: Mapping[str, str] = field(default_factory=dict)
    jobs: int = 0
    device: str = "auto"
    num_workers: int | None = None
    multi_node: bool = False

    @property
    def uses_gpus(self) -> bool:
        """Whether units compute on GPUs, if there are any."""
        return self.device == "auto" or is_accelerator_name(self.device)

    def integer(self, key: str, default: int, minimum: int = 1) -> int:
        """The value of a setting. Raises ``UserError`` if it is below ``minimum``."""
        text = self.settings.get(key, str(default))
        if not text.isdecimal() or int(text) < minimum:
            raise UserError(f"--executor-arg {key}={text}: give an integer, {minimum} or more")
        return int(text)

    def library(self, name: str) -> Any:
        """A module that only this executor needs. Raises ``UserError`` if it is not installed."""
        try:
            return importlib.import_module(name)
        except ImportError:
            raise UserError(
                f"--executor {self.name} needs {name}: pip install -e '.[scale]' in the checkout"
            ) from None
