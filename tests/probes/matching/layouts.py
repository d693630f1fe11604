"""Small copies of DAVIS in its official layout, made of photographs, so that the truth is exact;
and a backbone to which every patch looks different."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from tests.probes.datasets.make import save
from tests.probes.whole_images import Colours

Scene = tuple[np.ndarray, np.ndarray]  # a photograph, and its objects (H, W) uint8


class Patches(Colours):
    """Its features are random projections of patches of 16 pixels."""

    channels, strides, divisor = (32,), (16,), 16

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, ...]:
        generator = torch.Generator().manual_seed(7)
        kernels = torch.randn(32, 3, 16, 16, generator=generator).to(images.device)
        return (torch.nn.functional.conv2d(images, kernels, stride=16),)


def noisy_scene(seed: int, size: tuple[int, int] = (96, 192)) -> Scene:
    """A photograph, every patch of which looks different, with two objects."""
    random = np.random.default_rng(seed)
    coarse = Image.fromarray(random.integers(0, 256, (size[0] // 4, size[1] // 4, 3), np.uint8))
    objects = np.zeros(size, np.uint8)
    objects[32:64, 48:80], objects[32:80, 96:112] = 1, 2
    return np.asarray(coarse.resize(size[::-1], Image.Resampling.NEAREST)), objects


def make_davis(
    root: Path,
    scenes: Mapping[str, Scene] | None = None,
    frames: int = 5,
    step: int = 16,
    size: tuple[int, int] = (80, 128),
) -> Path:
    """Videos are crops of ``size`` (height, width) that move over photographs, ``step`` pixels a
    frame, to the right."""
    scenes = scenes or {f"video{number}": noisy_scene(number) for number in range(2)}
    for name, scene in scenes.items():
        for number in range(frames):
            left = number * step
            photo, objects = (each[: size[0], left : left + size[1]] for each in scene)
            file = f"480p/{name}/{number:05}"
            save(root / f"JPEGImages/{file}.jpg", photo, quality=97, subsampling=0)
            save(root / f"Annotations/{file}.png", objects)
    for split in ("train", "val"):
        path = root / f"ImageSets/2017/{split}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("\n".join(scenes) + "\n")
    return root
