"""Evaluation of several images at once, where neighbours in the dataset have one shape."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from mmengine.registry import DATA_SAMPLERS
from torch.utils.data import Sampler

PIXELS, CUDA_PIXELS = (
    2**18,
    2**22,
)  # of a batch: on a GPU the work around a batch is long beside that for its images


def at_once(images: int, device: torch.device) -> dict[str, Any]:
    """How an evaluation's loader makes its batches: ``images`` at most, fewer where they are
    large."""
    pixels = CUDA_PIXELS if device.type == "cuda" else PIXELS
    return {"batch_size": images, "batch_sampler": {"type": "SameShapeBatches", "pixels": pixels}}


@DATA_SAMPLERS.register_module()
class SameShapeBatches(Sampler[list[int]]):
    """Batches of neighbours that have one shape; the order stays that of the dataset, and with it
    that of the scores.

    Args:
        sampler: gives the order; its ``dataset`` has ``shape(index)``: what must be equal within a
            batch, height and width of the padded image first.
        batch_size: images of a batch at most.
        pixels: of the images of a batch at most. What several images at once save is the work
            around the model, a fixed time for each batch; large images gain nothing and would only
            take memory (logits at the label's resolution).
    """

    def __init__(self, sampler: Sampler[int], batch_size: int, pixels: int = PIXELS) -> None:
        self.sampler, self.batch_size, self.pixels = sampler, batch_size, pixels
        self._batches: list[list[int]] = []

    def batches(self) -> list[list[int]]:
        """All of them; put together once, since the order of an evaluation does not change."""
        if not self._batches:
            last: tuple[int, ...] | None = None
            for index in self.sampler:
                shape = self.sampler.dataset.shape(index)  # type: ignore[attr-defined]
                most = max(1, min(self.batch_size, self.pixels // (shape[0] * shape[1])))
                if shape != last or len(self._batches[-1]) >= most:
                    self._batches.append([])
                self._batches[-1].append(index)
                last = shape
        return self._batches

    def __iter__(self) -> Iterator[list[int]]:
        return iter(self.batches())

    def __len__(self) -> int:
        return len(self.batches())
