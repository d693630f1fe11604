"""Evaluation of several images at once, where neighbours in the dataset have one shape."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
from mmengine.registry import DATA_SAMPLERS
from torch.utils.data import Sampler

from cliptex_common.device import is_accelerator

# of a batch: on a GPU the time around a batch is long compared to that of its images
PIXELS, GPU_PIXELS = 2**18, 2**22
OUTPUTS, GPU_OUTPUTS = 2**27, 2**30  # numbers that a model puts out for a batch, in float32


def batch_options(images: int, device: torch.device, channels: int = 0) -> dict[str, Any]:
    """Loader options of an evaluation with batches of at most so many ``images``, fewer where they
    are large, or what is made of them is: ``channels`` numbers for each pixel of their files."""
    pixels, outputs = (GPU_PIXELS, GPU_OUTPUTS) if is_accelerator(device) else (PIXELS, OUTPUTS)
    sampler: dict[str, Any] = {"type": "SameShapeBatches", "pixels": pixels}
    if channels:
        sampler["outputs"] = outputs // channels
    return {"batch_size": images, "batch_sampler": sampler}


@DATA_SAMPLERS.register_module()
class SameShapeBatches(Sampler[list[int]]):
    """Batches of neighbours of one shape, in the order of the dataset, which does not change.

    Args:
        sampler: gives the order; its ``dataset`` has ``shape(index)``, which must be equal within a
            batch: height and width of the padded image first.
        batch_size: most images of a batch.
        pixels: most pixels of a batch. Batches save the work around the model, a fixed time for
            each; large images gain nothing and take memory.
        outputs: most pixels of a batch's image files, at whose resolution outputs are made; None
            for any number. The ``dataset`` has ``own_size(index)``.
    """

    def __init__(
        self,
        sampler: Sampler[int],
        batch_size: int,
        pixels: int = PIXELS,
        outputs: int | None = None,
    ) -> None:
        dataset: Any = sampler.dataset  # type: ignore[attr-defined]
        self.batches: list[list[int]] = []
        self.outputs = outputs
        batch: list[int] = []
        batch_shape, output_pixels = None, 0
        for index in sampler:
            shape = dataset.shape(index)
            own_pixels = math.prod(dataset.own_size(index)) if outputs else 0
            has_room = len(batch) < max(1, min(batch_size, pixels // (shape[0] * shape[1])))
            fits = not outputs or output_pixels + own_pixels <= outputs
            if shape != batch_shape or not has_room or not fits:
                batch, batch_shape, output_pixels = [], shape, 0
                self.batches.append(batch)
            batch.append(index)
            output_pixels += own_pixels

    def __iter__(self) -> Iterator[list[int]]:
        return iter(self.batches)

    def __len__(self) -> int:
        return len(self.batches)
