"""Pictures of features: components of known features, signs, and likeness from what is stored."""

import io
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import backbones
from backbones.backbone import Preprocessing
from cliptex_common.errors import UserError
from probes.base import EncodeContext
from probes.pictures import DIMENSIONS, feature_pictures, principal_components
from tests.probes.datasets import make

CPU = EncodeContext(torch.device("cpu"), num_workers=0)


@pytest.fixture(scope="module")
def paths(tmp_path_factory) -> list[Path]:
    root, rng = tmp_path_factory.mktemp("images"), np.random.default_rng(0)
    files = [root / f"{index}.jpg" for index in range(3)]
    for file in files:
        Image.fromarray(make.picture(rng, (60, 40), rng.integers(0, 256, 3))).save(file)
    return files


@pytest.mark.parametrize("shape", [(200, 40), (30, 50), (50, 4)])
def test_components_are_those_of_the_covariance(shape):
    features = np.random.default_rng(0).normal(1, [3, 2, 1, 1, *[0.1] * (shape[1] - 4)], shape)
    components, centre, explained = principal_components(features)
    centred = features - features.mean(axis=0)
    values = np.linalg.svd(centred, compute_uv=False)[: components.shape[1]]
    shares = values**2 / np.square(centred).sum()
    assert explained == pytest.approx(shares, abs=1e-9)
    assert np.linalg.norm(components, axis=0) == pytest.approx(values, abs=1e-6)
    assert np.square(centre).sum() == pytest.approx(np.square(features.mean(axis=0)).sum())
    mirrored, *_ = principal_components(-features)
    assert np.allclose(mirrored, -components, atol=1e-6), "signs follow from the loadings alone"


@pytest.mark.parametrize("name", ["random/timm/test_vit", "random/timm/resnet18"])
def test_the_stored_map_has_the_cosines_of_the_features(name, paths):
    backbone = backbones.create(name)
    arrays = feature_pictures(CPU, backbone, paths, paths[0].parent, size=(160, 160))
    images, height, width, dimensions = arrays["map"].shape
    assert (images, dimensions) == (3, min(DIMENSIONS, images * height * width))
    assert arrays["colours"].shape == (3, height, width, 3)
    assert arrays["image"].tolist() == ["0.jpg", "1.jpg", "2.jpg"]
    strip = Image.open(io.BytesIO(arrays["strip"].tobytes()))
    assert strip.width == 3 * strip.height

    parts = arrays["map"].reshape(-1, dimensions) * arrays["scale"] + arrays["centre"][:-1]
    parts = np.pad(parts, ((0, 0), (0, 1)), constant_values=arrays["centre"][-1])
    parts /= np.linalg.norm(parts, axis=1, keepdims=True)
    with torch.inference_mode():
        transform = backbone_input(backbone, 160)
        maps = torch.cat([backbone(transform(path))[-1] for path in paths])
    features = maps.flatten(2).transpose(1, 2).flatten(0, 1)
    features = torch.nn.functional.normalize(features, dim=1).numpy()
    assert np.abs(parts @ parts.T - features @ features.T).max() < 0.05


def backbone_input(backbone, size):
    """What the backbone gets of an image, squeezed to a square."""
    prepare = Preprocessing(replace(backbone.data, size=(size, size), squash=True))
    return lambda path: prepare(Image.open(path))[None]


def test_constant_features_have_no_colour(paths):
    backbone = backbones.create("random/timm/test_vit")
    for parameter in backbone.parameters():
        parameter.zero_()
    arrays = feature_pictures(CPU, backbone, paths, paths[0].parent)
    assert (arrays["map"] == 0).all() and len(np.unique(arrays["colours"])) == 1


def test_features_that_are_not_finite_are_refused(paths):
    backbone = backbones.create("random/timm/test_vit")
    next(backbone.parameters()).fill_(torch.nan)
    with pytest.raises(UserError, match="not finite"):
        feature_pictures(CPU, backbone, paths, paths[0].parent)
