"""The MLflow run of a stage, and its notes in the terminal."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from benchmark.execution.interrupts import as_interrupt
from benchmark.execution.progress import console
from reports.mlflow.run import Run, Tracker


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
