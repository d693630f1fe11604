"""How numbers of the accelerator are compared with those of the CPU."""

from __future__ import annotations

import math
from collections.abc import Mapping

import pytest
import torch

from tests.accelerator.pretended.tensor import DEVICE

COUNTED = {"ordinal_accuracy": 0.1}  # percent; rounding may turn some of an image's 4,000 pairs


def is_pretended(device: torch.device) -> bool:
    """Whether the accelerator of the cases is the pretended one, whose arithmetic is the CPU's."""
    return device.type == DEVICE.type


def check_metrics(
    actual: Mapping[str, float], expected: Mapping[str, float], device: torch.device, rel: float
) -> None:
    """Compare metrics of the accelerator with the CPU's.

    A real accelerator has other random numbers and sums in another order, and after a few
    iterations a metric may be anything: there metrics have to exist, and to be finite.
    """
    assert actual.keys() == expected.keys()
    for name, value in actual.items():
        if is_pretended(device):
            absolute = COUNTED.get(name, rel)
            assert value == pytest.approx(expected[name], rel=rel, abs=absolute, nan_ok=True), name
        assert math.isfinite(value) or not math.isfinite(expected[name]), name
