"""Where units of work run: the options of all commands that submit some.

The device of a unit of work, chosen where it runs, and the precision that it prefers."""

from __future__ import annotations

import importlib
import os
from collections.abc import Mapping
from dataclasses import field
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import AfterValidator, NonNegativeInt

from benchmark.unit import GPUS
from cliptex_common.errors import UserError
from cliptex_common.process import describe_variables, is_accelerator_name
from cliptex_common.settings import Precision, options_dataclass

if TYPE_CHECKING:
    import torch

    from cliptex_common.device import Device


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


def choose_device(name: str) -> torch.device:
    """The device called ``name``; for ``auto`` the accelerator of this machine, or the CPU if there
    is none or this unit was assigned none.

    Raises:
        UserError: the device does not exist, or this unit was assigned a GPU that torch does not
            find: it would compute on the CPU for days.
    """
    import torch

    from cliptex_common.device import current_device, is_accelerator, is_available

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
    is asked (``benchmark.run.ask_for_precision``).

    Args:
        option: the option that changes a task's settings, which the note names.

    Returns:
        the precision, and a note to print.
    """
    from cliptex_common.device import current_device, is_available, planned_device, prefers_bf16

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
