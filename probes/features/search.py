"""Exact nearest neighbours by brute force, in chunks."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from cliptex_common.device import is_accelerator

# similarities in memory at once: 512 MiB, 16 MiB; they change nothing but the order of equal ones
GPU_CELLS, CPU_CELLS = 2**27, 2**22


def nearest_neighbours(
    queries: Tensor,
    memory: Tensor,
    k: int,
    offset: Tensor | None = None,
    *,
    prepare: Callable[[Tensor], Tensor] | None = None,
    skip: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """The ``k`` rows of ``memory`` with the largest inner product (plus ``offset``), in order.

    For cosine similarity both are unit vectors; for L2 distance ``offset`` is minus half the
    squared length of each row. The memory is read once, and never copied as a whole.

    Args:
        queries: (N, D) float32, on the device that computes.
        memory: (M, D), on any device and of any precision.
        offset: (M,).
        prepare: makes the keys of some rows of the memory, float32 on the device.
        skip: (M,) whether a row is left out.
    Returns:
        similarities (N, k) float32 and indices (N, k) int64, on the device; all M if M < ``k``.
    """
    cells = GPU_CELLS if is_accelerator(queries.device) else CPU_CELLS
    columns = max(min(k, len(memory)), min(len(memory), 2**16))
    parts = queries.split(max(1, cells // columns))
    best = [part.new_empty(len(part), 0) for part in parts]
    indices = [part.new_empty(len(part), 0, dtype=torch.int64) for part in parts]
    for start in range(0, len(memory), columns):
        keys = memory[start : start + columns].to(queries.device, queries.dtype)
        keys = prepare(keys) if prepare else keys
        for number, part in enumerate(parts):
            similar = part @ keys.T
            if offset is not None:
                similar += offset[start : start + columns].to(part.device)
            if skip is not None:
                similar[:, skip[start : start + columns].to(part.device)] = -torch.inf
            values, index = similar.topk(min(k, len(keys)), dim=1)
            values = torch.cat([best[number], values], dim=1)
            index = torch.cat([indices[number], index + start], dim=1)
            if start:
                values, order = values.topk(min(k, values.shape[1]), dim=1)
                index = index.gather(1, order)
            best[number], indices[number] = values, index
    return torch.cat(best), torch.cat(indices)
