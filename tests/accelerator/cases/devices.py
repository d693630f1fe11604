"""How numbers of the accelerator are compared with those of the CPU."""

from __future__ import annotations

import math
from collections.abc import Mapping

import pytest
import torch

from tests.accelerator.pretended.tensor import DEVICE


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
    if is_pretended(device):
        assert dict(actual) == pytest.approx(dict(expected), rel=rel, abs=rel, nan_ok=True)
    for name, value in actual.items():
        assert math.isfinite(value) or not math.isfinite(expected[name]), name
