"""Units of work on processes of this machine, SLURM or Ray, behind one interface."""

from __future__ import annotations

from importlib import import_module

from benchmark.execution.base import EXECUTORS, Executor, ExecutorSpec, WorkerLost
from benchmark.execution.progress import Bar

SHIPPED = ("local", "slurm", "ray_cluster")


def make_executor(spec: ExecutorSpec, bar: Bar) -> Executor:
    """The executor that a user asked for, ready for ``with``.

    Raises:
        UserError: no such executor or setting, or what it needs is not installed.
    """
    for module in SHIPPED:
        import_module(f"benchmark.execution.{module}")
    return EXECUTORS.find(spec.name)(spec, bar)


__all__ = ["Bar", "Executor", "ExecutorSpec", "WorkerLost", "make_executor"]
