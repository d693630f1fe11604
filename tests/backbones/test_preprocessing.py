"""Images in memory are prepared as the probes prepare files."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from timm.data import create_transform

import backbones
from backbones.backbone import DataConfig, Preprocessing, in_memory_format, resizing
from probes.base import EncodeContext
from probes.image_level.encode import ImageViews
from probes.image_level.settings import Encoding

CHANGES = {
    "crops": {"crop_pct": 0.875},
    "squashes": {"squash": True, "crop_pct": 0.875},
    "is not square": {"size": (64, 96), "crop_pct": 0.9, "interpolation": "bilinear"},
}


@pytest.fixture(scope="module")
def backbone():
    return backbones.create("random/timm/resnet18")


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
@pytest.mark.parametrize("mode", ["RGB", "RGBA", "I;16"])
def test_pixels_are_those_of_the_probes(tmp_path, backbone, change, mode):
    rng = np.random.default_rng(0)
    shape = {"RGB": (50, 90, 3), "RGBA": (50, 90, 4), "I;16": (50, 90)}[mode]
    high, dtype = (65536, np.uint16) if mode == "I;16" else (256, np.uint8)
    Image.fromarray(rng.integers(0, high, shape).astype(dtype)).save(tmp_path / "0.png")
    backbone.data = replace(backbone.data, **change)
    run, paths = EncodeContext(torch.device("cpu"), num_workers=0), [tmp_path / "0.png"]
    views = ImageViews(run, backbone, paths, Encoding(), encode=lambda images: images)
    (expected,) = views.tensors()
    with Image.open(tmp_path / "0.png") as image:
        prepared = in_memory_format(Preprocessing(backbone.data)(image)[None], backbone)
    assert torch.equal(prepared, expected) and prepared.stride()[1:] == expected.stride()[1:]
    assert prepared.shape[-2:] == backbone.data.size and prepared.std() > 0.1


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic", "nearest"])
@pytest.mark.parametrize(("side", "share"), [(224, 1.0), (224, 0.875), (37, 0.9)])
def test_squares_are_those_of_timms_evaluation(interpolation, side, share):
    rng = np.random.default_rng(side)
    ours = resizing(DataConfig((side, side), (0, 0, 0), (1, 1, 1), crop_pct=share), interpolation)
    theirs = create_transform(
        (3, side, side), interpolation=interpolation, crop_pct=share, normalize=False
    )
    for shape in [(50, 90, 3), (301, 40, 3), (side, side, 3), (7, 333), (225, 224, 3)]:
        image = Image.fromarray(rng.integers(0, 256, shape, np.uint8))
        assert torch.equal(ours(image), theirs(image))


@pytest.mark.parametrize(
    ("architecture", "layers", "channels_last"),
    [
        ("vit_tiny_patch16_224", (), False),
        ("vit_tiny_patch16_224", (1, 3), False),
        ("resnet18", (), True),
        ("resnet18", (4,), True),
    ],
)
def test_all_but_plain_vits_compute_channels_last(architecture, layers, channels_last):
    backbone = backbones.create(f"random/timm/{architecture}", layers=layers)
    images = in_memory_format(torch.zeros(2, 3, 64, 64), backbone)
    assert images.is_contiguous(memory_format=torch.channels_last) == channels_last
