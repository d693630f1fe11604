"""What a unit of work needs: threads and GPUs, fixed by its kind and never by who else runs."""

from __future__ import annotations

from benchmark.execution.base import Executor, threads_of_a_task

ON_DEVICE = ("train", "probe", "label", "expert")


def needs(kind: str, executor: Executor, device: str, num_workers: int) -> dict[str, int]:
    """``cpus`` and ``gpus`` of a unit, as ``Executor.submit`` takes them.

    Args:
        kind: ``render``, or one of ``ON_DEVICE``, which compute on a GPU where there is one.
        device: as the user says it.
        num_workers: loading processes; on a GPU each has a core beside the unit's own. On a CPU they share the unit's.
    """
    if kind == "render":
        return {"cpus": 1, "gpus": 0}
    if kind not in ON_DEVICE:
        raise ValueError(f"no kind of unit {kind!r}")
    if not device.startswith("cuda") and not (device == "auto" and executor.has_gpus):
        return {"cpus": threads_of_a_task(), "gpus": 0}
    return {"cpus": num_workers + 1, "gpus": 1}
