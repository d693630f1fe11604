"""Exact nearest neighbours by brute force, in chunks: what k-NN probes and in-context segmentation
stand on."""

from __future__ import annotations

import torch
from torch import Tensor

CELLS = {
    "cuda": 2**27,
    "cpu": 2**22,
}  # of similarities that are in memory at once (512 MiB, 16 MiB)


def nearest(
    queries: Tensor, memory: Tensor, k: int, offset: Tensor | None = None, *, cells: int = 0
) -> tuple[Tensor, Tensor]:
    """The ``k`` entries of ``memory`` with the largest inner product (plus ``offset``), the largest
    first.

    For cosine both are unit vectors; for L2 distance ``offset`` is minus half the squared length of
    each entry.

    Args:
        queries: (N, D) float32, on the device that computes; memory: (M, D), there or not, in any
            precision; offset: (M,).
        cells: similarities that are in memory at once; 0 for what suits the device. It changes no
            more than the order of equals.
    Returns:
        similarities (N, k) float32 and indices (N, k) int64, on the device; all M where there are
        fewer than ``k``.
    """
    cells = cells or CELLS.get(queries.device.type, CELLS["cpu"])
    columns = max(min(k, len(memory)), min(len(memory), 2**16))
    found = []
    for rows in queries.split(max(1, cells // columns)):
        best, places = (
            rows.new_empty(len(rows), 0),
            torch.empty(len(rows), 0, dtype=torch.int64, device=rows.device),
        )
        for start in range(0, len(memory), columns):
            part = memory[start : start + columns].to(rows.device, rows.dtype)
            similar = rows @ part.T
            if offset is not None:
                similar += offset[start : start + columns].to(rows.device)
            values, index = similar.topk(min(k, len(part)), dim=1)
            best, places = (
                torch.cat([best, values], dim=1),
                torch.cat([places, index + start], dim=1),
            )
            if start:
                best, order = best.topk(min(k, best.shape[1]), dim=1)
                places = places.gather(1, order)
        found.append((best, places))
    similar, index = (torch.cat(each) for each in zip(*found, strict=True))
    return similar, index
