"""What earlier runs measured on the kind of device that units would have."""

from __future__ import annotations

from collections.abc import Mapping

from benchmark.evaluation.cost.device import choose_device, device_kind
from benchmark.execution.base import Executor
from common.errors import UserError
from reports.mlflow.run import Tracker


def earlier_runs(
    tracker: Tracker | None, executor: Executor, filter_string: str
) -> list[Mapping[str, float]]:
    """Metrics of the runs that fit an MLflow filter and were made on this kind of device, newest
    first; none where the executor's GPUs are other machines' and what they are is not known
    here."""
    try:
        device = choose_device(executor.device)
    except UserError:
        return []
    if tracker is None or (executor.has_gpus and device.type == "cpu"):
        return []
    return [
        run.data.metrics
        for run in tracker.search(
            f"{filter_string} and tags.`device.kind` = '{device_kind(device)}'"
        )
    ]
