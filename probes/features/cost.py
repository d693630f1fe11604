"""What encoding images costs a run: time, images and floating-point operations, of what was not
kept already."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from backbones.cliptex.protocols import Progress, Silent
from probes.base import Context
from probes.runner.shared_parts import counted


@dataclass
class EncodeCost:
    """Adds up what was encoded; stays at nothing where all features were there.

    Attributes:
        images: that went through the backbone (each view of an image counts).
        seconds: of decoding, computing and writing them.
        flops: of the backbone, see ``backbones.cliptex.cost``. The first batch of each shape is
            counted, since an image's operations follow from its shape.
    """

    images: float = 0
    seconds: float = 0.0
    flops: float = 0.0
    _of_an_image: dict[tuple[int, ...], float] = field(default_factory=dict, repr=False)

    def run(self, function: Callable[[Tensor], Any], batch: Tensor) -> Any:
        """``function(batch)``, counted; ``batch`` is (N, 3, H, W)."""
        shape = tuple(batch.shape[1:])
        if shape in self._of_an_image:
            result = function(batch)
        else:
            result, flops = counted(lambda: function(batch), True)
            self._of_an_image[shape] = flops / len(batch)
        self.images += len(batch)
        self.flops += len(batch) * self._of_an_image[shape]
        return result

    @contextmanager
    def timed(self) -> Iterator[None]:
        """Seconds of the block count if something was encoded in it."""
        before, started = self.images, time.perf_counter()
        yield
        if self.images > before:
            self.seconds += time.perf_counter() - started

    def share(self, tasks: int) -> EncodeCost:
        """An equal part of it, for each of ``tasks`` that it was done for."""
        return EncodeCost(self.images / tasks, self.seconds / tasks, self.flops / tasks)

    def added_to(self, costs: Mapping[str, float]) -> dict[str, float]:
        """``costs`` with ``encode_seconds``, ``encode_flops`` and – where something was encoded –
        ``encode_images_per_second``; ``flops`` is the sum of all that ends in ``_flops``."""
        added = {**costs, "encode_seconds": self.seconds, "encode_flops": self.flops}
        if self.images:
            added["encode_images_per_second"] = self.images / self.seconds
        return {
            **added,
            "flops": sum(value for name, value in added.items() if name.endswith("_flops")),
        }


@dataclass(frozen=True)
class EncodeRun:
    """What images are encoded with.

    Attributes:
        device: that computes.
        num_workers: loading processes (0 = in this one); they never change a value.
        progress: is told how far it is.
        cost: what is encoded is added to it.
    """

    device: torch.device
    num_workers: int = 2
    progress: Progress = field(default_factory=Silent)
    cost: EncodeCost = field(default_factory=EncodeCost)

    @classmethod
    def of(cls, context: Context) -> EncodeRun:
        """That of a task, whose costs begin at nothing."""
        return cls(context.device, context.num_workers, context.progress)
