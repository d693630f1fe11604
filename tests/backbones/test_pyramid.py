"""The simple feature pyramid and bringing maps to one stride."""

from __future__ import annotations

import hypothesis.strategies as st
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from torch import nn

from backbones.pyramid import LayerNorm2d, SimpleFeaturePyramid, resize_concat


@pytest.mark.parametrize(
    ("stride", "strides", "sides"),
    [
        (16, (4, 8, 16, 32), (48, 24, 12, 6)),
        (8, (4, 8, 16, 32), (24, 12, 6, 3)),
        (14, (3.5, 7, 14, 28), (48, 24, 12, 6)),
        (32, (4, 8, 16, 32), (96, 48, 24, 12)),
        (4, (4, 8, 16, 32), (12, 6, 3, 1)),
    ],
)
def test_levels(stride, strides, sides):
    pyramid = SimpleFeaturePyramid(24, 8, stride)
    assert pyramid.strides == strides
    levels = pyramid(torch.randn(2, 24, 12, 24))
    assert [level.shape for level in levels] == [
        (2, 8, side, side * 24 // 12 + (side == 1)) for side in sides
    ]


def test_layers_are_those_of_vitdet():
    """As in detectron2's ``SimpleFeaturePyramid``: deconvolutions halve the channels, norm and GELU
    between the two."""
    pyramid = SimpleFeaturePyramid(64, 16, 16)
    kinds = [[type(layer) for layer in level] for level in pyramid.levels]
    tail = [nn.Conv2d, LayerNorm2d, nn.Conv2d, LayerNorm2d]
    assert kinds == [
        [nn.ConvTranspose2d, LayerNorm2d, nn.GELU, nn.ConvTranspose2d, *tail],
        [nn.ConvTranspose2d, *tail],
        tail,
        [nn.MaxPool2d, *tail],
    ]
    deconvolutions = [
        [(m.in_channels, m.out_channels) for m in level if isinstance(m, nn.ConvTranspose2d)]
        for level in pyramid.levels
    ]
    assert deconvolutions == [[(64, 32), (32, 16)], [(64, 32)], [], []]
    assert [level[-4].in_channels for level in pyramid.levels] == [16, 32, 64, 64]


def test_trains_and_takes_another_norm():
    torch.manual_seed(0)
    pyramid = SimpleFeaturePyramid(
        8, 4, 16, out_strides=(8, 16), norm=lambda channels: nn.GroupNorm(1, channels)
    )
    last, target = torch.randn(1, 8, 4, 4), torch.randn(1, 4, 8, 8)
    optimiser = torch.optim.Adam(pyramid.parameters(), 0.01)
    losses = []
    for _ in range(60):
        loss = F.mse_loss(pyramid(last)[0], target)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < 0.7 * losses[0]
    assert all(p.grad is not None for p in pyramid.levels[0].parameters())


def test_layer_norm_is_over_channels():
    maps = torch.randn(2, 6, 3, 5) * 4 + 1
    norm = LayerNorm2d(6)
    nn.init.normal_(norm.weight)
    plain = (maps - maps.mean(1, keepdim=True)) / (
        maps.var(1, keepdim=True, unbiased=False) + norm.eps
    ).sqrt()
    torch.testing.assert_close(
        norm(maps), plain * norm.weight[:, None, None] + norm.bias[:, None, None]
    )


@given(
    height=st.integers(1, 3),
    width=st.integers(1, 3),
    strides=st.lists(st.sampled_from([4, 8, 16, 32]), min_size=1),
    stride=st.sampled_from([4, 8, 16]),
)
@settings(max_examples=60, deadline=None)
def test_resize_concat(height, width, strides, stride):
    maps = [
        torch.full((2, i + 1, height * 32 // s, width * 32 // s), float(i))
        for i, s in enumerate(strides)
    ]
    out = resize_concat(maps, strides, stride)
    assert out.shape == (
        2,
        sum(range(1, len(strides) + 1)),
        height * 32 // stride,
        width * 32 // stride,
    )
    start = 0
    for i in range(len(strides)):
        torch.testing.assert_close(
            out[:, start : start + i + 1], torch.full_like(out[:, : i + 1], float(i))
        )
        start += i + 1


def test_resize_concat_is_bilinear_and_leaves_the_map_at_its_stride():
    fine, coarse = torch.randn(1, 2, 8, 12), torch.randn(1, 3, 4, 6)
    out = resize_concat([fine, coarse], [4, 8], 4)
    assert torch.equal(out[:, :2], fine)
    assert torch.equal(
        out[:, 2:], F.interpolate(coarse, scale_factor=2, mode="bilinear", align_corners=False)
    )
    with pytest.raises(ValueError, match="2 maps but 1 strides"):
        resize_concat([fine, coarse], [4], 4)
