"""A backbone that sees colours and reads their names, and a context around it: for probes of whole
images."""

from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from backbones.backbone import Backbone, DataConfig, Weights
from probes.base import Context
from probes.datasets.base import Sample
from probes.datasets.check import prepare
from tests.probes import tiny_mmlab
from tests.probes.datasets.make import COLOURS
from tests.recorder import Recorder


class Colours(Backbone):
    """Image embedding: the mean colour in a fixed random projection. Text embedding: that of the
    colour it names."""

    name = architecture = "colours"
    channels, strides, divisor, embed_dim, has_text = (3,), (4,), 4, 8, True
    weights = Weights("made for tests", "0" * 64)

    def __init__(self, size=(32, 32), interpolation="bicubic", crop_pct=0.875, cnn=False):
        super().__init__()
        self.data = DataConfig(size, (0.5, 0.4, 0.3), (0.2, 0.25, 0.3), interpolation, crop_pct)
        if cnn:
            self.channels, self.strides = (3, 3), (4, 8)
        generator = torch.Generator().manual_seed(0)
        self.register_buffer("projection", torch.randn(3, self.embed_dim, generator=generator))
        self.register_buffer("std", torch.tensor(self.data.std))
        self.seen: list[torch.Size] = []
        self.freeze()

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        return tuple(torch.nn.functional.avg_pool2d(images, stride) for stride in self.strides)

    def encode_image(self, images: Tensor) -> Tensor:
        self.seen.append(images.shape)
        return (images * self.std.view(3, 1, 1)).mean(dim=(2, 3)) @ self.projection

    def encode_text(self, texts) -> Tensor:
        named = [
            next((rgb for colour, rgb in COLOURS.items() if colour in text), (0, 0, 0))
            for text in texts
        ]
        colours = torch.tensor(named) / 255 - torch.tensor(self.data.mean)
        return colours.to(self.projection.device) @ self.projection


class DenseColours(Colours):
    """Reads colours, and sees them cell by cell."""

    @property
    def has_dense_text(self):
        return True

    def encode_dense(self, images):
        cells = (self(images)[-1] * self.std.view(3, 1, 1)).permute(0, 2, 3, 1)
        return (cells @ self.projection).permute(0, 3, 1, 2)


def with_wrong_labels(task: Context) -> Context:
    """The task with each label of val replaced by the next class."""
    classes = len(task.data.classes)
    val = [Sample(each.image, (each.target + 1) % classes) for each in task.data.samples["val"]]
    data = replace(task.data, samples={**task.data.samples, "val": val})
    return replace(task, data=data, log=Recorder())


def context(probe, spec, root: Path, *, backbone=None, workers=0, **settings) -> Context:
    """A context for ``probe`` on the copy of a dataset at ``root``."""
    data = prepare(spec, root, splits=dict.fromkeys(probe.splits), partial=True)
    task = tiny_mmlab.context(root / "work", data, probe.settings_type(**settings), workers=workers)
    return replace(task, backbone=backbone or Colours(), backbone_config={"name": "colours"})
