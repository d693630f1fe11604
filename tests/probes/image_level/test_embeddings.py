"""Global embeddings: encoded once, the same numbers, and anew when anything about them changes."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from backbones import registry
from probes.features.cost import EncodeRun
from probes.features.store import root
from probes.image_level.embeddings import cached_embeddings
from probes.image_level.encode import encode_images
from probes.image_level.settings import Encoding
from tests.probes.tiny_mmlab import Recorder, context


@pytest.fixture
def paths(tmp_path, monkeypatch):
    monkeypatch.setenv("CLIPTEX_HOME", str(tmp_path / "home"))
    made = []
    for number in range(5):
        made.append(tmp_path / f"{number}.png")
        pixels = np.random.default_rng(number).integers(0, 256, (40, 50, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(made[-1])
    return made


def encode(paths, seed: int = 3, **how) -> tuple[torch.Tensor, bool]:
    """The embeddings, and whether a backbone was at work."""
    recorder = Recorder()
    around = replace(
        context(paths[0].parent / "work", recorder=recorder),
        backbone=registry.create("tiny-cnn", seed=seed),
    )
    run = EncodeRun.of(around)
    kept = cached_embeddings(
        around.backbone, paths, run, Encoding(**{"batch_size": 2, **how}), "toys"
    )
    return kept, bool(recorder.started)


def test_the_same_numbers_bit_by_bit_and_encoded_once(paths):
    fresh = encode_images(
        registry.create("tiny-cnn", seed=3),
        paths,
        EncodeRun(torch.device("cpu"), 0),
        Encoding(batch_size=2),
    )
    first, at_work = encode(paths)
    assert at_work and torch.equal(first, fresh)
    second, at_work = encode(paths)
    assert not at_work and torch.equal(second, fresh)


def test_whatever_changes_an_embedding_encodes_anew(paths):
    encode(paths)
    for changed in (
        {"seed": 4},
        {"size": (32, 32)},
        {"precision": "bf16"},
        {"paths": paths[::-1]},
        {"paths": paths[:4]},
        {"features": "pre_projection"},
        {"blocks": 2},
        {"batch_size": 3},
    ):
        assert encode(**{"paths": paths, **changed})[1], changed
    pixels = np.asarray(Image.open(paths[2])).copy()
    pixels[0, 0] ^= 1
    Image.fromarray(pixels).save(paths[2])
    assert encode(paths)[1]


def test_without_room_they_are_encoded_and_not_kept(paths, monkeypatch):
    monkeypatch.setenv("CLIPTEX_CACHE_GB", "0")
    for _ in range(2):
        embeddings, at_work = encode(paths)
        assert at_work and embeddings.shape == (5, 32)
    assert not list(root().glob("*/*.safetensors"))


def test_another_version_of_a_library_encodes_anew(paths, monkeypatch):
    encode(paths)
    monkeypatch.setattr(
        "probes.image_level.embeddings.versions", lambda *names: dict.fromkeys(names, "0.0")
    )
    assert encode(paths)[1]


def test_tokens_are_class_tokens_and_the_mean_of_the_last_patches(paths):
    backbone = registry.create("tiny-cnn", seed=3)
    tokens, _ = encode(paths, blocks=2)
    assert tokens.shape == (5, 24 + 32 + 32)
    embedding = encode_images(
        backbone, paths, EncodeRun(torch.device("cpu"), 0), Encoding(batch_size=2)
    )
    torch.testing.assert_close(
        tokens[:, 24:56], embedding
    )  # of a CNN both are the mean of the last map
    torch.testing.assert_close(tokens[:, 56:], embedding)
