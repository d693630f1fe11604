"""FLOPs of forward and backward passes equal those worked out by hand."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from cliptex_common.device import count_flops


@pytest.mark.parametrize("groups", [1, 4, 16])
@pytest.mark.parametrize("kind", [nn.Conv2d, nn.ConvTranspose2d])
def test_convolutions(kind, groups):
    layer = kind(16, 32, 3, groups=groups, padding=1)
    image = torch.randn(2, 16, 10, 10, requires_grad=True)
    # multiply and add × images × places × kernel × channels
    forward = 2 * 2 * 100 * 9 * 16 * 32 // groups
    assert count_flops(lambda: layer(image)) == forward
    # the image's gradient and the weight's
    assert count_flops(lambda: layer(image).sum().backward()) == 3 * forward


def test_linear():
    layer = nn.Linear(8, 4)
    rows = torch.randn(5, 8, requires_grad=True)
    assert count_flops(lambda: layer(rows).sum().backward()) == 3 * 2 * 5 * 8 * 4
