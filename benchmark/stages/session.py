"""The executor and the MLflow experiment of a command that submits units of work."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from benchmark.execution import Bar, Executor, ExecutorSpec, make_executor
from benchmark.execution.device import check_device
from benchmark.execution.progress import console
from reports.mlflow.client import tracking_uri
from reports.mlflow.run import Tracker

USE_SERVER = "start `mlflow server` and give --tracking-uri http://HOST:PORT"


@contextmanager
def open_executor_and_tracker(
    spec: ExecutorSpec, experiment: str
) -> Iterator[tuple[Executor, Tracker]]:
    """The executor and the MLflow experiment of a command that submits units of work. Runs whose
    process has vanished are closed before and after.

    Raises:
        UserError, TrackingError: no such executor or device, or a store that cannot be used (by
            units on other machines).
    """
    tracker = None
    try:
        with Bar() as bar, make_executor(spec, bar) as executor:
            check_device(spec.device, is_local=not executor.is_remote)
            executor.check_store(tracking_uri(), USE_SERVER)
            tracker = Tracker(experiment)
            for name in tracker.close_stale():
                console.print(
                    f"closed the run {name!r}, whose process had vanished", style="yellow"
                )
            yield executor, tracker
    finally:
        if tracker is not None:
            tracker.close_stale()
