"""Where units of work run: the options of all commands that submit some."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import field
from typing import Annotated, Any

from pydantic import AfterValidator, NonNegativeInt

from cliptex_common.errors import UserError
from cliptex_common.settings import options_dataclass
from cliptex_common.visible_devices import is_accelerator_name


def _check_device(name: str) -> str:
    """Raise ``UserError`` for a device that torch does not know."""
    if name not in ("auto", "cpu"):
        from cliptex_common.device import is_available  # needs torch

        is_available(name)
    return name


DeviceName = Annotated[str, AfterValidator(_check_device)]


@options_dataclass
class ExecutionOptions:
    """Where units of work run.

    Attributes:
        multi_node: whether a unit may compute in several processes and on several nodes
            (``--executor-arg nodes=2``).
    """

    multi_node = False  # no option: only `train` has it
    executor: str = "local"
    """local, slurm or ray; see `list executors`"""
    executor_arg: Mapping[str, str] = field(default_factory=dict)
    """a setting of the executor (repeatable): partition=gpu, time=240, address=auto …"""
    jobs: NonNegativeInt = 0
    """units of work at once, which share the cores; 0: one per GPU, else one per quarter of the
    cores (at most 8 cores each); 1: in this process"""
    num_workers: NonNegativeInt | None = None
    """data-loading processes of each unit of work; on a CPU results do not depend on them (default:
    cores divided by units at once; 2 on SLURM)"""
    device: DeviceName = "auto"
    """auto, cpu, or an accelerator as torch names it, perhaps with its number"""

    @property
    def uses_gpus(self) -> bool:
        """Whether units compute on GPUs, if there are any."""
        return self.device == "auto" or is_accelerator_name(self.device)

    def executor_integer(self, key: str, default: int, minimum: int = 1) -> int:
        """A setting of the executor. Raises ``UserError`` if it is below ``minimum``."""
        text = self.executor_arg.get(key, str(default))
        if not text.isdecimal() or int(text) < minimum:
            raise UserError(f"--executor-arg {key}={text}: give an integer, {minimum} or more")
        return int(text)

    def executor_library(self, name: str) -> Any:
        """A module that only this executor needs. Raises ``UserError`` if it is not installed."""
        try:
            return importlib.import_module(name)
        except ImportError:
            raise UserError(
                f"--executor {self.executor} needs {name}: pip install -e '.[scale]' in the"
                " checkout"
            ) from None
