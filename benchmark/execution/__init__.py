"""Units of work on processes of this machine, SLURM or Ray, behind one interface."""

from __future__ import annotations

from benchmark.execution.base import EXECUTORS, Executor
from benchmark.execution.options import ExecutionOptions
from benchmark.execution.progress import Bar
from benchmark.execution.unit import WorkerLost

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


def make_executor(options: ExecutionOptions, bar: Bar) -> Executor:
    """The executor of ``options``, ready for ``with``.

    Raises:
        UserError: unknown executor or setting, or a library that it needs is not installed.
    """
    return EXECUTORS.find(options.executor)(options, bar)


__all__ = ["EXECUTORS", "Bar", "ExecutionOptions", "Executor", "WorkerLost", "make_executor"]
