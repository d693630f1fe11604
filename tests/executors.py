"""Executors for tests: this process, or processes of this machine."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Coroutine, Mapping
from typing import Any

from benchmark.executor import ExecutionOptions, Executor, make_executor
from benchmark.progress import Bar


def executor_of(
    name: str = "local", settings: Mapping[str, str] | None = None, bar: Any = None, **options: Any
) -> Executor:
    """An executor with these settings and options; without progress."""
    execution = ExecutionOptions(executor=name, executor_arg=settings or {}, **options)
    return make_executor(execution, bar or Bar(interval=math.inf))


def run_on(
    work: Callable[[Executor], Coroutine[Any, Any, Any]], jobs: int = 1, bar: Any = None
) -> Any:
    """The result of ``work(executor)`` with ``jobs`` processes on the CPU; 1: in this process."""
    with executor_of("local", {"cpus": str(jobs)}, bar, jobs=jobs, device="cpu") as executor:
        return asyncio.run(work(executor))
