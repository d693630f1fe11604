"""What the phases of a probe have in common when their memory is counted."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from backbones.base import Backbone
from backbones.cliptex.protocols import Silent
from cliptex_common.live_bytes import LiveBytes
from probes.base import Context, Cost, Probe
from probes.datasets.base import Split
from probes.image_level.encode import Encode, encode_batches, encode_texts, encoder, input_size

CPU = torch.device("cpu")
Phases = Iterator[str]  # the names of phases, each when it is over


@dataclass
class MemoryPlan:
    """A task whose steps run on fake tensors, see ``cliptex_common.live_bytes``.

    Attributes:
        probe, context: of the task; the backbone is a fake copy, the device is the planned one, on
            which nothing is created.
        counter: of the device's bytes.
        capacity: bytes of the device; None for the memory of the host.
        host: bytes that stay in the memory of the host.
    """

    probe: Probe
    context: Context
    counter: LiveBytes
    capacity: int | None
    host: int = 0

    @property
    def settings(self) -> Any:
        return self.context.settings

    @property
    def backbone(self) -> Backbone:
        return self.context.backbone

    @property
    def classes(self) -> int:
        return len(self.context.data.classes)

    def images(self, split: Split) -> int:
        """Number of images of a split that are encoded."""
        return len(self.context.data.encoded(split))

    def resident(self, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        """A tensor that is on the device where it takes up to a quarter of its free memory
        (``on_device_if_small``), else in the memory of the host."""
        size = math.prod(shape) * dtype.itemsize
        if self.capacity is not None and size <= (self.capacity - self.counter.now) // 4:
            return torch.empty(shape, dtype=dtype)
        self.host += size
        with self.counter.on_host():
            return torch.empty(shape, dtype=dtype)

    def encode(
        self, images: int, encode: Encode | None = None, batch_size: int = 0
    ) -> Iterator[Tensor]:
        """Features of ``images`` images, of at most two batches, see ``encode_batches``."""
        encoding = self.settings.encoding(self.context.device.type)
        size = min(batch_size or encoding.batch_size, images)
        blanks: Any = Blanks(input_size(encoding.size, self.backbone))
        batches = [range(size)] * min(2, math.ceil(images / size))
        encode = encode or encoder(self.backbone, encoding)
        yield from encode_batches(blanks, batches, self.backbone, encode, self.on_cpu, encoding)

    @property
    def on_cpu(self) -> Context:
        """The context in which fake tensors are computed: all of them are on the CPU."""
        return replace(self.context, device=CPU, num_workers=0, progress=Silent(), cost=Cost())

    def embed(self, *splits: Split) -> int:
        """Encode the images of splits; the width of their embeddings."""
        width = 0
        with torch.inference_mode():
            for features in self.encode(max(map(self.images, splits))):
                width = features.shape[1]
        return width

    def embed_texts(self, texts: int) -> None:
        """Encode so many texts, or a batch of them."""
        prompts = ["a photo of something."] * min(texts, 256)
        encode_texts(self.on_cpu, prompts)


class Blanks:
    """In the place of ``probes.image_level.encode.Images``: images without pixels."""

    def __init__(self, size: Sequence[int]) -> None:
        self.size = size

    def __getitems__(self, items: Sequence[int]) -> Tensor:
        return torch.empty(len(items), 3, *self.size, dtype=torch.uint8)
