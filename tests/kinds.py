"""Every test is of one kind, by the nearest mark (its parameter's, its own, its module's)."""

from __future__ import annotations

from collections.abc import Container, Iterable
from typing import Any

import pytest

KINDS = ("unit", "integration", "cluster", "slow")


def mark_kinds(items: Iterable[pytest.Item]) -> None:
    """Leave each test its nearest kind, so that ``-m`` selects by it; ``unit`` without a mark."""
    kinds = {}
    for item in items:
        marks = [*reversed(item.own_markers), *item.iter_markers()]  # those of parameters are last
        kinds[item] = next((mark.name for mark in marks if mark.name in KINDS), "unit")
    for item, kind in kinds.items():
        for node in item.listchain():
            node.own_markers = [mark for mark in node.own_markers if mark.name not in KINDS]
        item.add_marker(kind)


def slow_except(names: Iterable[str], always: Container[str]) -> list[Any]:
    """Parameters of a test: those that are not in ``always`` are slow."""
    return [pytest.param(name, marks=() if name in always else pytest.mark.slow) for name in names]
