"""What a training costs: floating-point operations and seconds. "Better" has a price."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch.utils.flop_counter import FlopCounterMode


def count_flops(function: Callable[[], Any]) -> int:
    """Floating-point operations of matrix products, convolutions and attention while ``function`` runs.

    Counted by torch's own counter: a multiply and an add are two operations; backward passes inside are included,
    element-wise operations are not.
    """
    with FlopCounterMode(display=False) as counter:
        function()
    return int(counter.get_total_flops())
