"""Small segmented images, and patch features that source and suite compute from them alike."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from backbones import registry
from backbones.backbone import Backbone, DataConfig, Weights
from backbones.registry import Entry, Request
from probes.base import Context
from probes.datasets.base import DatasetSpec, PreparedDataset, mirrored
from probes.dense.patches.images import PatchImages
from probes.registry import DATASETS, register_dataset

PATCH, CLASSES = 16, ("first", "second", "third")
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
VOID = {"golden-void-255": 255, "golden-void-0": 0}  # dataset → the stored label of void
for _name, _void in VOID.items():
    if _name not in DATASETS:
        register_dataset(
            DatasetSpec(
                _name,
                "segmentation",
                _name,
                mirrored("images/{part}", "labels/{part}"),
                classes=CLASSES,
                label_offset=0 if _void else -1,
            )
        )


def picture(number: int, void: int) -> tuple[Image.Image, Image.Image]:
    """An image and its label map, with a stripe of void."""
    random = np.random.default_rng(number)
    height, width = 60 + 7 * (number % 4), 90 - 5 * (number % 3)
    coarse = Image.fromarray(random.integers(0, 256, (5, 7, 3), np.uint8))
    image = np.asarray(coarse.resize((width, height), Image.BICUBIC))
    stored = image.argmax(axis=2).astype(np.uint8) + (void == 0)
    top = 8 * (number % 5)
    stored[top : top + 9, : width // 2] = void
    noise = random.integers(-20, 21, image.shape)
    return Image.fromarray((image + noise).clip(0, 255).astype(np.uint8)), Image.fromarray(stored)


def write(root: Path, dataset: str, train: list[int], val: list[int]) -> PreparedDataset:
    """The pictures of these numbers as a dataset; of equal numbers the files are equal."""
    for split, numbers in (("train", train), ("val", val)):
        for folder in ("images", "labels"):
            (root / folder / split).mkdir(parents=True, exist_ok=True)
        for index, number in enumerate(numbers):
            for folder, each in zip(
                ("images", "labels"), picture(number, VOID[dataset]), strict=True
            ):
                each.save(root / folder / split / f"{index:03}.png")
    spec = DATASETS[dataset]
    samples = {split: spec.list_samples(root, split) for split in ("train", "val")}
    return PreparedDataset(spec.name, root, samples, fingerprint=f"{dataset}-{train}-{val}")


@cache
def projection() -> Tensor:
    """(D, 3, patch, patch) weights of the features."""
    random = torch.Generator().manual_seed(7)
    return torch.randn(6, 3, PATCH, PATCH, generator=random) / PATCH


def features(images: Tensor) -> Tensor:
    """(N, 3, H, W) normalised images → (N, D, H / patch, W / patch)."""
    return nn.functional.conv2d(images, projection(), stride=PATCH)


class Projection(Backbone):
    """``features`` as a plain ViT of one map."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = self.architecture = name
        self.strides, self.channels, self.divisor = (PATCH,), (6,), PATCH
        self.embed_dim, self.data = 6, DataConfig((224, 224), MEAN, STD)
        self.weights = Weights("fixed", "projection")

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        return (features(images),)

    def encode_image(self, images: Tensor) -> Tensor:
        return self(images)[-1].mean(dim=(2, 3))


def _build(request: Request) -> Backbone:
    return Projection(request.name)


if "golden-projection" not in registry.BACKBONES:
    registry.register(Entry("golden-projection", "for tests", "MIT", _build))


def normalised_black(task: Context) -> list[float]:
    """A black pixel as the backbone of a task gets it."""
    normalise = PatchImages(task, "train").dataset.encoder["data_preprocessor"]
    return [-mean / std for mean, std in zip(normalise["mean"], normalise["std"], strict=True)]
