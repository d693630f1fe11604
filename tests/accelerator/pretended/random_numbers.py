"""The random numbers of the pretended accelerator: its own, and those of its generators."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

CPU, DEVICE_TYPE = torch.device("cpu"), "gpu"
_CPUGenerator = torch.Generator
OWN = _CPUGenerator().manual_seed(0)  # what operators of the device use by default
_of_device: set[int] = set()  # addresses of generators that were created for the device


def is_pretended(device: Any) -> bool:
    """Whether ``device`` (of any type that torch takes) is the pretended accelerator."""
    if not isinstance(device, str | torch.device):
        return False
    return torch.device(device).type == DEVICE_TYPE


class Generator(_CPUGenerator):
    """In place of ``torch.Generator``: one of the device is a CPU generator that is remembered by
    its address, because torch hands it on as another Python object."""

    def __new__(cls, device: Any = "cpu") -> Generator:
        pretended = is_pretended(device)
        generator = _CPUGenerator.__new__(cls, device="cpu" if pretended else device)
        if pretended:
            _of_device.add(generator._cdata)
        else:
            _of_device.discard(generator._cdata)
        return generator

    @property
    def device(self) -> torch.device:
        return torch.device("privateuseone", 0) if is_of_device(self) else CPU


def is_of_device(generator: torch.Generator) -> bool:
    """Whether a generator was created for the device."""
    return generator._cdata in _of_device


@contextmanager
def own_random_numbers() -> Iterator[None]:
    """Let operators on the CPU draw from the device's own numbers while the block runs."""
    of_cpu = torch.default_generator.get_state()
    torch.default_generator.set_state(OWN.get_state())
    try:
        yield
    finally:
        OWN.set_state(torch.default_generator.get_state())
        torch.default_generator.set_state(of_cpu)
