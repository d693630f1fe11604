"""What all stages share: an MLflow run of its own, skipped when its result is there, by one process
at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractAsyncContextManager, AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

from benchmark.execution import Bar, Executor, ExecutorSpec, make_executor
from benchmark.execution.interrupts import as_interrupt
from benchmark.execution.progress import console, reporter, reporting
from common.locks import lock_path, locked, locked_async
from reports.mlflow.client import tracking_uri
from reports.mlflow.run import Run, Tracker


@contextmanager
def driving(spec: ExecutorSpec, experiment: str) -> Iterator[tuple[Executor, Tracker]]:
    """What a command needs that gives out units: an executor, and the experiment that they write
    to. Runs whose process is gone are closed before, and after the executor's tasks have ended.

    Raises:
        UserError, TrackingError: no such executor, or a store that cannot be used (by tasks on
            other machines).
    """
    tracker = None
    try:
        with Bar() as bar, reporting(bar), make_executor(spec, bar) as executor:
            executor.check_store(tracking_uri())
            tracker = Tracker(experiment)
            for name in tracker.close_stale():
                console.print(
                    f"closed the run {name!r}: its process had vanished",
                    style="yellow",
                    markup=False,
                )
            yield executor, tracker
    finally:
        if tracker is not None:
            tracker.close_stale()


@contextmanager
def stage_run(
    tracker: Tracker,
    stage: str,
    name: str,
    tags: Mapping[str, str],
    params: Mapping[str, Any],
    parent: Run | None = None,
) -> Iterator[Run]:
    """An MLflow run for a stage (under ``parent``)."""
    about = {"stage": stage, "suite": tracker.experiment, **tags}
    with (
        tracker.run(name, tags=about, params=params, parent=parent, monitored=True) as run,
        as_interrupt(),
    ):
        yield run


def one_maker(out: Path) -> AbstractContextManager[bool]:
    """No other process makes ``out`` (a file or folder) meanwhile; who comes second waits, and
    looks for it again."""
    return locked(*_lock(out))


def one_maker_async(out: Path) -> AbstractAsyncContextManager[bool]:
    """``one_maker`` for a coroutine, which others do not wait for."""
    return locked_async(*_lock(out))


def _lock(out: Path) -> tuple[Path, Callable[[], None]]:
    told = f"another process makes {out.name}: waiting for it"
    return lock_path("make", str(out.absolute())), lambda: reporter().start(told, 1)
