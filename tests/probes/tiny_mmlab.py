"""A small backbone with known weights and a toy MMEngine problem, for the tests of the frozen
backbone and of training."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from backbones import registry
from backbones.backbone import Backbone, DataConfig, Weights, state_sha256
from backbones.registry import Entry, Request
from probes.base import Context
from probes.datasets.base import DatasetSpec, PreparedDataset
from probes.registry import DATASETS, register_dataset
from tests.recorder import Recorder

TOY = DatasetSpec("tiny-toy", "segmentation", "tiny-toy", lambda root, split: [])
if TOY.name not in DATASETS:
    register_dataset(TOY)


class TinyBackbone(Backbone):
    """A few convolutions with BatchNorm: a 'CNN' with strides 4 to 32, or a 'plain ViT' with maps
    of one stride."""

    def __init__(self, name: str, seed: int, strides: tuple[int, ...]) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.name = self.architecture = name
        self.strides, self.channels = strides, tuple(8 * (i + 1) for i in range(len(strides)))
        self.divisor, self.embed_dim = max(strides), self.channels[-1]
        self.data = DataConfig((64, 64), (0.5, 0.5, 0.5), (0.25, 0.25, 0.25))
        before, stages = (3, 1), []
        for channels, stride in zip(self.channels, self.strides, strict=True):
            step = stride // before[1]
            stages.append(
                nn.Sequential(
                    nn.AvgPool2d(step),
                    nn.Conv2d(before[0], channels, 3, padding=1),
                    nn.BatchNorm2d(channels),
                    nn.ReLU(),
                )
            )
            before = channels, stride
        self.stages = nn.ModuleList(stages)
        self.weights = Weights(f"random(seed={seed})", state_sha256(self.state_dict()))

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        maps, x = [], images
        for stage in self.stages:
            x = stage(x)
            maps.append(x)
        return tuple(maps)

    @property
    def model(self) -> nn.Module:
        """What is tuned."""
        return self

    def encode_image(self, images: Tensor) -> Tensor:
        return self(images)[-1].mean(dim=(2, 3))


def _build(request: Request) -> Backbone:
    return TinyBackbone(request.name, request.seed, STRIDES[request.name])


STRIDES = {"tiny-cnn": (4, 8, 16, 32), "tiny-vit": (16,), "tiny-vit14": (14, 14)}
for _name in STRIDES:
    if _name not in registry.BACKBONES:
        registry.register(Entry(_name, "for tests", "MIT", _build))


def context(
    work_dir: Path,
    data: PreparedDataset | None = None,
    settings: Any = None,
    backbone: str = "tiny-cnn",
    recorder: Recorder | None = None,
    seed: int = 0,
    workers: int = 0,
) -> Context:
    recorder = recorder or Recorder()
    create = {"name": backbone, "seed": 3}
    work_dir.mkdir(parents=True, exist_ok=True)
    return Context(
        backbone=registry.create(**create),
        backbone_config=create,
        data=data or PreparedDataset(TOY.name, work_dir, {}),
        settings=settings,
        seed=seed,
        device=torch.device("cpu"),
        work_dir=work_dir,
        log=recorder,
        progress=recorder,
        num_workers=workers,
    )
