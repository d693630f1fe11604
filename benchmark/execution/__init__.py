"""Units of work on processes of this machine, SLURM or Ray, behind one interface."""

from __future__ import annotations

from benchmark.execution.base import EXECUTORS, Executor
from benchmark.execution.progress import Bar
from benchmark.execution.spec import ExecutorSpec, WorkerLost

EXECUTORS.register_lazy(
    "local",
    f"{__name__}.local:LocalExecutor",
    "a process per GPU of this machine, else per quarter of its cores, at most 8 each (default)",
)
EXECUTORS.register_lazy(
    "slurm",
    f"{__name__}.slurm:SlurmExecutor",
    "a SLURM job per unit (submitit); any option of sbatch as --executor-arg",
)
EXECUTORS.register_lazy(
    "ray",
    f"{__name__}.ray_cluster:RayExecutor",
    "a Ray task per unit, on a local Ray or a cluster (address=auto)",
)


def make_executor(spec: ExecutorSpec, bar: Bar) -> Executor:
    """The executor of ``spec``, ready for ``with``.

    Raises:
        UserError: unknown executor or setting, or a library that it needs is not installed.
    """
    return EXECUTORS.find(spec.name)(spec, bar)


__all__ = ["EXECUTORS", "Bar", "Executor", "ExecutorSpec", "WorkerLost", "make_executor"]
