"""Evaluation of several images at once, where neighbours in the dataset have one shape."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from mmengine.registry import DATA_SAMPLERS
from torch.utils.data import Sampler

# of a batch: on a GPU the time around a batch is long compared to that of its images
PIXELS, CUDA_PIXELS = 2**18, 2**22


def at_once(images: int, device: torch.device) -> dict[str, Any]:
    """Loader options of an evaluation with batches of at most so many ``images``, fewer where they
    are large."""
    pixels = CUDA_PIXELS if device.type == "cuda" else PIXELS
    return {"batch_size": images, "batch_sampler": {"type": "SameShapeBatches", "pixels": pixels}}


@DATA_SAMPLERS.register_module()
class SameShapeBatches(Sampler[list[int]]):
    """Batches of neighbours of one shape, in the order of the dataset.

    Args:
        sampler: gives the order; its ``dataset`` has ``shape(index)``, which must be equal within a
            batch: height and width of the padded image first.
        batch_size: most images of a batch.
        pixels: most pixels of a batch. Batches save the work around the model, a fixed time for
            each; large images gain nothing and take memory (logits at the label's resolution).
    """

    def __init__(self, sampler: Sampler[int], batch_size: int, pixels: int = PIXELS) -> None:
        self.sampler, self.batch_size, self.pixels = sampler, batch_size, pixels
        self._batches: list[list[int]] = []

    def batches(self) -> list[list[int]]:
        """All batches, built once: the order of an evaluation does not change."""
        if not self._batches:
            last: tuple[int, ...] | None = None
            for index in self.sampler:
                shape = self.sampler.dataset.shape(index)  # type: ignore[attr-defined]
                limit = max(1, min(self.batch_size, self.pixels // (shape[0] * shape[1])))
                if shape != last or len(self._batches[-1]) >= limit:
                    self._batches.append([])
                self._batches[-1].append(index)
                last = shape
        return self._batches

    def __iter__(self) -> Iterator[list[int]]:
        return iter(self.batches())

    def __len__(self) -> int:
        return len(self.batches())
