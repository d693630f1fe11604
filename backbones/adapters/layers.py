"""Which blocks are read, when nobody says."""

from __future__ import annotations


def evenly_spaced(depth: int, count: int = 4) -> tuple[int, ...]:
    """Indices of ``count`` evenly spaced blocks of ``depth``, the last one included: depth 12 gives (2, 5, 8, 11)."""
    count = min(count, depth)
    return tuple((i + 1) * depth // count - 1 for i in range(count))
