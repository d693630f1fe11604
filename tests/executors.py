"""Executors for tests: this process, or processes of this machine."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Coroutine
from typing import Any

from benchmark.execution import Bar, Executor, ExecutorSpec, make_executor


def run_on(
    work: Callable[[Executor], Coroutine[Any, Any, Any]], jobs: int = 1, bar: Any = None
) -> Any:
    """The result of ``work(executor)`` with ``jobs`` processes on the CPU; 1: in this process."""
    spec = ExecutorSpec(settings={"cpus": str(jobs)}, jobs=jobs, device="cpu")
    with make_executor(spec, bar or Bar(interval=math.inf)) as executor:
        return asyncio.run(work(executor))
