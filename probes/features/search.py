"""Exact nearest neighbours by brute force, in chunks."""

from __future__ import annotations

import torch
from torch import Tensor

# similarities in memory at once: 512 MiB, 16 MiB
CELLS = {"cuda": 2**27, "cpu": 2**22}


def nearest(
    queries: Tensor, memory: Tensor, k: int, offset: Tensor | None = None, *, cells: int = 0
) -> tuple[Tensor, Tensor]:
    """The ``k`` rows of ``memory`` with the largest inner product (plus ``offset``), in order.

    For cosine similarity both are unit vectors; for L2 distance ``offset`` is minus half the
    squared length of each row.

    Args:
        queries: (N, D) float32, on the device that computes.
        memory: (M, D), on any device and of any precision.
        offset: (M,).
        cells: similarities in memory at once; 0 for the device's default. It changes nothing but
            the order of equal similarities.
    Returns:
        similarities (N, k) float32 and indices (N, k) int64, on the device; all M if M < ``k``.
    """
    cells = cells or CELLS.get(queries.device.type, CELLS["cpu"])
    columns = max(min(k, len(memory)), min(len(memory), 2**16))
    results = []
    for rows in queries.split(max(1, cells // columns)):
        best = rows.new_empty(len(rows), 0)
        indices = torch.empty(len(rows), 0, dtype=torch.int64, device=rows.device)
        for start in range(0, len(memory), columns):
            part = memory[start : start + columns].to(rows.device, rows.dtype)
            similar = rows @ part.T
            if offset is not None:
                similar += offset[start : start + columns].to(rows.device)
            values, index = similar.topk(min(k, len(part)), dim=1)
            best = torch.cat([best, values], dim=1)
            indices = torch.cat([indices, index + start], dim=1)
            if start:
                best, order = best.topk(min(k, best.shape[1]), dim=1)
                indices = indices.gather(1, order)
        results.append((best, indices))
    similar, index = (torch.cat(parts) for parts in zip(*results, strict=True))
    return similar, index
