"""Floating-point operations of a call, beside its result."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from backbones.cliptex.cost import count_flops

T = TypeVar("T")


def counted(function: Callable[[], T], count: bool) -> tuple[T, int]:
    """The result of ``function``, and its floating-point operations if they are to be counted."""
    if not count:
        return function(), 0
    results: list[T] = []
    flops = count_flops(lambda: results.append(function()))
    return results[0], flops
