"""Stages that depend on each other: looked up for a dry run, or run, each once."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from typing import Any

from benchmark.execution.base import Executor
from cliptex_common.heap import return_freed_memory


@dataclass(frozen=True, eq=False)
class Stage:
    """A step of a pipeline.

    Attributes:
        title: shown to the user.
        find: (results of ``needs``) → its result if it exists, else None; creates nothing.
        make: (executor, results of ``needs``) → its result, which is reused if it exists.
        needs: stages that come first.
    """

    title: str
    find: Callable[..., Any]
    make: Callable[..., Awaitable[Any]]
    needs: tuple[Stage, ...] = ()


class Runner:
    """Runs stages, each once, however many others need it; independent ones at the same time."""

    def __init__(self, executor: Executor) -> None:
        self._executor = executor
        self._running: dict[Stage, asyncio.Task[Any]] = {}

    async def run(self, stage: Stage) -> Any:
        """The result of a stage, after those of all that it needs."""
        if stage not in self._running:
            self._running[stage] = asyncio.ensure_future(self._make(stage))
        return await self._running[stage]

    async def _make(self, stage: Stage) -> Any:
        try:
            inputs = await asyncio.gather(*map(self.run, stage.needs))
            return await stage.make(self._executor, *inputs)
        finally:
            return_freed_memory()  # of models that were loaded to look for finished work


def find_results(stages: Iterable[Stage]) -> dict[Stage, Any]:
    """Stage → its result, of ``stages`` and all that they need, in the order of the work; None for
    what does not exist, and for what needs it."""
    results: dict[Stage, Any] = {}

    def visit(stage: Stage) -> None:
        if stage in results:
            return
        for needed in stage.needs:
            visit(needed)
        inputs = [results[needed] for needed in stage.needs]
        results[stage] = None if any(each is None for each in inputs) else stage.find(*inputs)

    for stage in stages:
        visit(stage)
    return_freed_memory()
    return results
