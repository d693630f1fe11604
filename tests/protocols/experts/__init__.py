"""Golden records of experts: what their authors' networks make of images with random weights.

A module for each source has ``SOURCE`` and ``COMMIT``, ``source(checkout)`` and ``suite()`` as
those of a protocol, and ``DIFFERS``: field → what this suite does otherwise. MMDetection and
torchvision are installed: tests of ``mask-rcnn`` compare with them directly.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

REPEAT = 99_991  # random values of a tensor at most; larger ones repeat them, which is quick


def random_state(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A state dict of these names and shapes that keeps the scale of activations; each tensor
    follows from its name and its shape alone."""
    return {name: _random(name, tensor) for name, tensor in state.items()}


def _random(name: str, template: Tensor) -> Tensor:
    if name.endswith("num_batches_tracked"):
        return torch.zeros_like(template)
    generator = torch.Generator().manual_seed(zlib.crc32(name.encode()))
    values = torch.randn(min(template.numel(), REPEAT), generator=generator)
    values = values.repeat(-(-template.numel() // REPEAT))[: template.numel()].view(template.shape)
    if name.endswith(("running_var", "weight")) and template.ndim == 1:
        return 1 + 0.1 * values.tanh()
    if template.ndim == 1:
        return 0.1 * values
    return values * template[0].numel() ** -0.5 if name.endswith("weight") else 0.1 * values


def image(height: int, width: int) -> Tensor:
    """A random picture, (1, 3, height, width) uint8."""
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (1, 3, height, width), dtype=torch.uint8, generator=generator)


class _Reached(Exception):
    """The network is about to compute."""


def network_input(network: nn.Module, call: Callable[[], Any]) -> Tensor:
    """What ``call`` gives to a network, which does not compute."""
    inputs: list[Tensor] = []

    def stop(module: nn.Module, positional: tuple[Any, ...], keywords: dict[str, Any]) -> None:
        inputs.extend([*positional, *keywords.values()])
        raise _Reached

    hook = network.register_forward_pre_hook(stop, with_kwargs=True)
    try:
        call()
    except _Reached:
        return inputs[0]
    finally:
        hook.remove()
    raise AssertionError("the network was not called")
