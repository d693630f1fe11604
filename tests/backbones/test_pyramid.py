"""The simple feature pyramid and bringing maps to one stride."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from backbones.backbone import LayerNorm2d, SimpleFeaturePyramid, resize_concat


@pytest.mark.parametrize(
    ("stride", "strides", "sides"),
    [
        (16, (4, 8, 16, 32), (48, 24, 12, 6)),
        (14, (3.5, 7, 14, 28), (48, 24, 12, 6)),
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


def test_resize_concat_is_bilinear_and_leaves_the_map_at_its_stride():
    fine, coarse = torch.randn(1, 2, 8, 12), torch.randn(1, 3, 4, 6)
    out = resize_concat([fine, coarse], [4, 8], 4)
    assert torch.equal(out[:, :2], fine)
    enlarged = F.interpolate(coarse, scale_factor=2, mode="bilinear", align_corners=False)
    assert torch.equal(out[:, 2:], enlarged)
    assert resize_concat([fine, coarse], [4, 8], 16).shape == (1, 5, 2, 3)
