"""What labelling, training and probing cost: floating-point operations beside seconds. "Better" has a price.

Counted are matrix products, convolutions and attention, by torch's own counter: a multiply and an add are two operations;
backward passes are included, element-wise operations (norms, activations, optimizer) and decoding are not. One
representative step is counted and multiplied by the number of steps, since the counter slows what it counts.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode


def count_flops(function: Callable[[], Any]) -> int:
    """Floating-point operations while ``function`` runs, backward passes inside it included."""
    with _counter() as counter:
        function()
    return int(counter.get_total_flops())


class StepCounter:
    """The same for a step that begins and ends in different places (hooks): the first whole one is counted, no other.

    Attributes:
        flops: of the step; 0 until one was counted.
    """

    def __init__(self) -> None:
        self.flops = 0
        self._counted = False
        self._counter: FlopCounterMode | None = None

    def start(self) -> None:
        """Begin to count, unless a step was counted already."""
        if not self._counted and self._counter is None:
            self._counter = _counter()
            self._counter.__enter__()

    def stop(self) -> bool:
        """End the count; whether there was one. Also for a step that broke: nothing is counted any more after it."""
        if self._counter is None:
            return False
        self._counter.__exit__(None, None, None)  # which keeps what it counted
        self.flops, self._counter, self._counted = int(self._counter.get_total_flops()), None, True
        return True


def _counter() -> FlopCounterMode:
    custom: Any = {torch.ops.aten.convolution_backward: _convolution_backward}
    return FlopCounterMode(display=False, custom_mapping=custom)


def _convolution_backward(
    gradient: Sequence[int],
    image: Sequence[int],
    weight: Sequence[int],
    _bias: Any,
    _stride: Any,
    _padding: Any,
    _dilation: Any,
    transposed: bool,
    _output_padding: Any,
    _groups: int,
    output_mask: Sequence[bool],
    out_shape: Any = None,
) -> int:
    """Each gradient that is asked for costs as much as the convolution itself.

    Torch's own formula takes the gradient of a grouped convolution's weight for that of a dense one: for EfficientNet's
    depthwise convolutions thirteen times too much in all.
    """
    places = math.prod((image if transposed else gradient)[2:])
    # weight: (out, in / groups, …), or transposed (in, out / groups, …); either way its product is multiplied per place
    forward = 2 * image[0] * places * math.prod(weight)
    return forward * (int(output_mask[0]) + int(output_mask[1]))
