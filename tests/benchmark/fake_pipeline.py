"""Suites for tests that train backbones."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import backbones
from benchmark.suites import BackboneSource, Suite, register_suite

Makers = Mapping[str, Callable[[], Awaitable[BackboneSource]]]


class FakePipeline:
    """Trains each backbone by calling its maker, once for all that have the same."""

    data: Mapping[str, Path] = {}

    def __init__(self, makers: Makers) -> None:
        self.makers, self.made = makers, {}

    def trains(self, name: str) -> bool:
        return name in self.makers

    def architecture(self) -> Any:
        return backbones.create("random")

    async def make_data(self) -> None:
        pass

    async def weights(self, name: str, seed: int) -> BackboneSource:
        make = self.makers[name]
        if make not in self.made:
            self.made[make] = asyncio.ensure_future(make())
        return await self.made[make]


def register_trained(
    name: str, tasks: Mapping[str, Any], names: Sequence[str], makers: Makers
) -> None:
    """Register a suite whose backbones in ``makers`` are trained."""
    register_suite(Suite(name, "for tests", tasks, names, pipeline=lambda *_: FakePipeline(makers)))
