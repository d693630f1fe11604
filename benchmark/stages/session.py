"""What commands and their stages share: the executor, the MLflow experiment, and a run of each
stage."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch

from benchmark.execution import Bar, ExecutionOptions, Executor, make_executor
from benchmark.execution.device import choose_device
from benchmark.execution.interrupts import as_interrupt
from benchmark.execution.progress import console
from cliptex_common.device import device_name
from reports.cell import TAGS
from reports.mlflow.client import tracking_uri
from reports.mlflow.run import Run, Tracker


@contextmanager
def open_executor_and_tracker(
    options: ExecutionOptions, experiment: str
) -> Iterator[tuple[Executor, Tracker]]:
    """The executor, started, and the MLflow experiment of a command that submits units of work.

    Raises:
        UserError: no such executor, or as ``start_executor``.
        TrackingError: as ``start_executor``.
    """
    with Bar() as bar:
        executor = make_executor(options, bar)
        with start_executor(executor, experiment) as tracker:
            yield executor, tracker


@contextmanager
def start_executor(executor: Executor, experiment: str) -> Iterator[Tracker]:
    """Start an executor and open the MLflow experiment that its units log to. Runs whose process
    has vanished are closed before and after.

    Raises:
        UserError, TrackingError: no such device, or a store that cannot be used (by units on other
            machines).
    """
    tracker = None
    try:
        with executor:
            executor.check_store(tracking_uri())
            tracker = Tracker(experiment)
            for name in tracker.close_stale():
                console.print(
                    f"closed the run {name!r}, whose process had vanished", style="yellow"
                )
            yield tracker
    finally:
        if tracker is not None:
            tracker.close_stale()


def print_note(line: str) -> None:
    """Print what a user may want to know about a stage."""
    console.print(f"  note · {line}", style="dim")


@contextmanager
def stage_run(
    tracker: Tracker,
    stage: str,
    name: str,
    tags: Mapping[str, str],
    params: Mapping[str, Any],
    parent: Run | None = None,
) -> Iterator[Run]:
    """The MLflow run of a stage, under ``parent``."""
    tags = {"stage": stage, "suite": tracker.experiment, **tags}
    with (
        tracker.run(name, tags=tags, params=params, parent=parent, monitored=True) as run,
        as_interrupt(),
    ):
        yield run


def computing_tags(device: str) -> dict[str, str]:
    """The tags of a run that say what it computes on."""
    return {
        TAGS["device"]: device_name(choose_device(device)),
        "threads": str(torch.get_num_threads()),
    }
