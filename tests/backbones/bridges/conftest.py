"""Small pictures, a small CLIP, and the embeddings that the suite itself computes of files."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from backbones.backbone import Backbone
from backbones.checkpoint import Checkpoint, save_checkpoint
from probes.base import EncodeContext
from probes.image_level.encode import ImageViews
from probes.image_level.settings import Encoding
from tests.backbones import mini

TOLERANCE = 1e-6
SIZES = ((90, 70), (64, 120), (100, 100))


def save_picture(path: Path, width: int, height: int, seed: int) -> Path:
    """A smooth picture with some noise, so that resizing matters."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (6, 6, 3), np.uint8))
    pixels = np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC)).astype(int)
    pixels = pixels + rng.integers(-20, 21, pixels.shape)
    Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(path)
    return path


@pytest.fixture(scope="session")
def pictures(tmp_path_factory) -> list[Path]:
    """Three PNG files of other sizes than any backbone's."""
    folder = tmp_path_factory.mktemp("pictures")
    return [save_picture(folder / f"{index}.png", *size, index) for index, size in enumerate(SIZES)]


@pytest.fixture(scope="session")
def clip_weights(tmp_path_factory) -> Path:
    """Weights of a CLIP at 64 px that crops, for ``cliptex``."""
    path = tmp_path_factory.mktemp("weights") / "clip.safetensors"
    save_checkpoint(
        Checkpoint(
            path,
            mini.mini_clip().state_dict(),
            "open_clip/mini",
            mini.CONFIG,
            replace(mini.DATA, crop_pct=0.875, interpolation="bicubic"),
            "none",
            "tests",
        )
    )
    return path


@pytest.fixture(params=["cliptex", "random/timm/resnet18"])
def spec(request, clip_weights) -> tuple[str, dict]:
    """Name and options of ``create``: a ViT with a text tower, a network of stages without."""
    return request.param, {"weights": clip_weights} if request.param == "cliptex" else {}


def ours(backbone: Backbone, paths: Sequence[Path]) -> torch.Tensor:
    """(N, D) embeddings of files as the probes have them."""
    run = EncodeContext(torch.device("cpu"), num_workers=0)
    return torch.cat(list(ImageViews(run, backbone, paths, Encoding()).tensors()))


def difference(ours: torch.Tensor, theirs) -> float:
    """The largest; the embeddings must be worth comparing."""
    assert ours.std() > 1e-3 and (ours[0] - ours[1]).abs().max() > 1e-3
    largest = (ours - torch.as_tensor(theirs)).abs().max().item()
    print(f"largest difference {largest:.1e} of values up to {ours.abs().max():.2f}")
    return largest
