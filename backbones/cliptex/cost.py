"""Floating-point operations of labelling, training and probing.

Counted are matrix products, convolutions and attention, by torch's own counter: a multiply and an
add are two operations; backward passes are included, element-wise operations (norms, activations,
optimizer) and decoding are not. One representative step is counted and multiplied by the number of
steps, since the counter slows what it counts. A file of its own, since ``benchmark.cell`` counts
the encoding of images without a training.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode


def count_flops(function: Callable[[], Any]) -> int:
    """Floating-point operations while ``function`` runs, backward passes inside it included."""
    custom: Any = {torch.ops.aten.convolution_backward: _convolution_backward}
    with FlopCounterMode(display=False, custom_mapping=custom) as counter:
        function()
    return int(counter.get_total_flops())


def _convolution_backward(
    gradient: Sequence[int],
    image: Sequence[int],
    weight: Sequence[int],
    *options: Any,
    out_shape: Any = None,
) -> int:
    """Each requested gradient costs as much as the convolution itself.

    ``options``: bias, stride, padding, dilation, transposed, output padding, groups, and which
    gradients are requested.

    Torch's own formula takes the gradient of a grouped convolution's weight for that of a dense
    one: for EfficientNet's depthwise convolutions thirteen times too much in all.
    """
    transposed, requested = options[4], options[7]
    positions = math.prod((image if transposed else gradient)[2:])
    # weight: (out, in / groups, …), or transposed (in, out / groups, …); either way its product is
    # multiplied per position
    return 2 * image[0] * positions * math.prod(weight) * (int(requested[0]) + int(requested[1]))
