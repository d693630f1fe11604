"""Parts of images look the same at every size to a plain ViT, and not to a network that breaks."""

from dataclasses import replace
from itertools import pairwise
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

import backbones
from backbones.adapters.module import ModuleBackbone
from probes.pictures import GRID, PART_IMAGES, part_features
from reports.statistics import MIN_LIKENESS, part_likeness
from tests.probes import tiny_dense, tiny_mmlab


class Breaks(nn.Module):
    """A convolution that has other weights above 448 px."""

    def __init__(self):
        super().__init__()
        self.convolutions = nn.ModuleList(nn.Conv2d(3, 64, 16, stride=16) for _ in range(2))

    def forward(self, images):
        return self.convolutions[images.shape[-1] > 448](images)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return tiny_dense.make(tmp_path_factory.mktemp("parts"), "segmentation", train=1, val=5)


def likeness(data, backbone, folder, sizes=(224, 448, 672)):
    """The likeness kept from each size to the next."""
    context = replace(tiny_mmlab.context(folder, data), backbone=backbone)
    features = []
    for size in sizes:
        settings = SimpleNamespace(size=size, precision="fp32")
        parts = part_features(replace(context, settings=settings))
        assert len(parts["image"]) == PART_IMAGES and parts["features"].shape[:2] == (
            PART_IMAGES,
            GRID**2,
        )
        features.append(parts["features"].reshape(PART_IMAGES * GRID**2, -1))
    return [part_likeness(small, large) for small, large in pairwise(features)]


def test_a_module_that_breaks_above_448_px_is_flagged(data, tmp_path):
    torch.manual_seed(0)
    first, second = likeness(data, ModuleBackbone(Breaks(), "breaks"), tmp_path)
    assert first > 0.8 and second < MIN_LIKENESS


def test_a_plain_vit_is_not_flagged(data, tmp_path):
    vit = backbones.create("random/timm/test_vit")
    assert min(likeness(data, vit, tmp_path)) > 2 * MIN_LIKENESS


@pytest.mark.parametrize("broken", ["noise", "constant", "negative", "shifted"])
def test_any_kind_of_other_features_is_a_change_of_mode(broken):
    random = np.random.default_rng(0)
    small, noise = random.normal(1, 1, (2, 64, 32))
    large = {
        "noise": noise,
        "constant": np.ones_like(small),
        "negative": -small,
        "shifted": small + 50 * noise[:1],
    }[broken]
    assert part_likeness(small, 3 * small) == pytest.approx(1)
    assert part_likeness(small, large) < MIN_LIKENESS
