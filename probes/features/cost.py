"""What encoding images costs a task: time, images and floating-point operations. Cached features
cost nothing."""

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
    """Sums over everything that was encoded; zero where all features were cached.

    Attributes:
        images: that went through the backbone (each view of an image counts).
        seconds: of decoding, computing and writing.
        flops: of the backbone, see ``backbones.cliptex.cost``. They are counted for the first batch
            of each shape, since an image's operations follow from its shape.
    """

    images: float = 0
    seconds: float = 0.0
    flops: float = 0.0
    _flops_of_shape: dict[tuple[int, ...], float] = field(default_factory=dict, repr=False)

    def run(self, function: Callable[[Tensor], Any], batch: Tensor) -> Any:
        """``function(batch)``, counted; ``batch`` is (N, 3, H, W)."""
        shape = tuple(batch.shape[1:])
        if shape in self._flops_of_shape:
            result = function(batch)
        else:
            result, flops = counted(lambda: function(batch), True)
            self._flops_of_shape[shape] = flops / len(batch)
        self.images += len(batch)
        self.flops += len(batch) * self._flops_of_shape[shape]
        return result

    @contextmanager
    def timed(self) -> Iterator[None]:
        """Add the seconds of the block if something was encoded in it."""
        before, started = self.images, time.perf_counter()
        yield
        if self.images > before:
            self.seconds += time.perf_counter() - started

    def share(self, tasks: int) -> EncodeCost:
        """An equal share for each of ``tasks`` that used the features."""
        return EncodeCost(self.images / tasks, self.seconds / tasks, self.flops / tasks)

    def added_to(self, costs: Mapping[str, float]) -> dict[str, float]:
        """``costs`` with ``encode_seconds``, ``encode_flops`` and – if something was encoded –
        ``encode_images_per_second``; ``flops`` is the sum of all names that end in ``_flops``."""
        costs = {**costs, "encode_seconds": self.seconds, "encode_flops": self.flops}
        if self.images:
            costs["encode_images_per_second"] = self.images / self.seconds
        flops = sum(value for name, value in costs.items() if name.endswith("_flops"))
        return {**costs, "flops": flops}


@dataclass(frozen=True)
class EncodeRun:
    """What images are encoded with.

    Attributes:
        device: that computes.
        num_workers: loading processes (0: this process); they never change a value.
        progress: a progress bar.
        cost: to which encoding adds.
    """

    device: torch.device
    num_workers: int = 2
    progress: Progress = field(default_factory=Silent)
    cost: EncodeCost = field(default_factory=EncodeCost)

    @classmethod
    def of(cls, context: Context) -> EncodeRun:
        """That of a task, with a cost of zero."""
        return cls(context.device, context.num_workers, context.progress)
