"""What a training costs: floating-point operations and seconds. "Better" has a price."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode


def count_flops(function: Callable[[], Any]) -> int:
    """Floating-point operations of matrix products, convolutions and attention while ``function`` runs.

    Counted by torch's own counter: a multiply and an add are two operations; backward passes inside are included,
    element-wise operations are not.
    """
    custom: Any = {torch.ops.aten.convolution_backward: _convolution_backward}
    with FlopCounterMode(display=False, custom_mapping=custom) as counter:
        function()
    return int(counter.get_total_flops())


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
