"""Global embeddings: encoded once, the same numbers, and anew when anything about them changes."""

import numpy as np
import pytest
import torch
from PIL import Image

from backbones import registry
from probes.base import EncodeContext
from probes.features.store import root
from probes.image_level.encode import ImageViews
from probes.image_level.settings import Encoding

CPU = torch.device("cpu")


@pytest.fixture
def paths(tmp_path):
    files = [tmp_path / f"{number}.png" for number in range(5)]
    for number, file in enumerate(files):
        pixels = np.random.default_rng(number).integers(0, 256, (40, 50, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(file)
    return files


def encode(paths, seed: int = 3, **options) -> tuple[torch.Tensor, bool]:
    """The embeddings, and whether an image was encoded."""
    run, encoding = EncodeContext(CPU, 0), Encoding(**{"batch_size": 2, **options})
    backbone = registry.create("tiny-cnn", seed=seed)
    embeddings = ImageViews(run, backbone, paths, encoding, "toys").embeddings()
    return embeddings, run.cost.images["encode"] > 0


def encode_directly(paths):
    backbone = registry.create("tiny-cnn", seed=3)
    views = ImageViews(EncodeContext(CPU, 0), backbone, paths, Encoding(batch_size=2))
    return torch.cat(list(views.tensors()))


def test_the_same_numbers_bit_by_bit_and_encoded_once(paths):
    direct = encode_directly(paths)
    for expected in (True, False):
        embeddings, was_encoded = encode(paths)
        assert was_encoded is expected and torch.equal(embeddings, direct)


@pytest.mark.parametrize(
    "change",
    [
        {"seed": 4},
        {"size": (32, 32)},
        {"precision": "bf16"},
        {"features": "pre_projection"},
        {"blocks": 2},
        {"batch_size": 3},
    ],
)
def test_another_encoding_is_encoded_anew(paths, change):
    encode(paths)
    assert encode(paths, **change)[1]


def test_other_images_and_libraries_are_encoded_anew(paths, monkeypatch):
    encode(paths)
    assert encode(paths[::-1])[1] and encode(paths[:4])[1]
    pixels = np.asarray(Image.open(paths[2])).copy()
    pixels[0, 0] ^= 1
    Image.fromarray(pixels).save(paths[2])
    assert encode(paths)[1]
    other = "probes.image_level.encode.versions"
    monkeypatch.setattr(other, lambda *names: dict.fromkeys(names, "0.0"))
    assert encode(paths)[1]


def test_without_disk_space_they_are_encoded_and_not_cached(paths, monkeypatch):
    monkeypatch.setenv("CLIPTEX_CACHE_GB", "0")
    for _ in range(2):
        embeddings, was_encoded = encode(paths)
        assert was_encoded and embeddings.shape == (5, 32)
    assert not list(root().glob("*/*.safetensors"))
