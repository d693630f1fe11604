"""Units of work on processes of this machine, SLURM or Ray, behind one interface."""

from __future__ import annotations

from benchmark.execution.base import EXECUTORS, Executor, ExecutorSpec, WorkerLost
from benchmark.execution.progress import Bar

EXECUTORS.register_lazy(
    "local",
    f"{__name__}.local:LocalExecutor",
    "processes of this machine, one for each GPU or share of the cores (default)",
)
EXECUTORS.register_lazy(
    "slurm",
    f"{__name__}.slurm:SlurmExecutor",
    "a SLURM job for each task (submitit); any option of sbatch as --executor-arg",
)
EXECUTORS.register_lazy(
    "ray",
    f"{__name__}.ray_cluster:RayExecutor",
    "a Ray task for each unit, on a Ray of its own or a cluster (address=auto)",
)


def make_executor(spec: ExecutorSpec, bar: Bar) -> Executor:
    """The executor that a user asked for, ready for ``with``.

    Raises:
        UserError: no such executor or setting, or what it needs is not installed.
    """
    return EXECUTORS.find(spec.name)(spec, bar)


__all__ = ["EXECUTORS", "Bar", "Executor", "ExecutorSpec", "WorkerLost", "make_executor"]
