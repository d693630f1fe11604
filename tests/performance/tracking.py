"""What tracking costs: logging a long run's curves, as a share of the run; and metrics a second
against one-by-one logging."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

from tests.performance.harness import Result, alternate, bench


@bench
def tracking() -> list[Result]:
    """2,000 steps of three curves through ``Run.log_metrics`` against ``MlflowClient.log_metric``
    one by one."""
    from reports.mlflow.run import Tracker

    with tempfile.TemporaryDirectory() as folder:
        tracker = Tracker("bench", f"sqlite:///{Path(folder).resolve()}/mlflow.db")
        steps = 2000

        def batched() -> float:
            with tracker.run("batched") as run:
                started = time.perf_counter()
                for step in range(steps):
                    run.log_metrics(
                        {"train/loss": 1.0, "train/lr": 0.1, "train/grad_norm": 2.0}, step
                    )
                run.flush()
                return 1000 * (time.perf_counter() - started) / (3 * steps)

        def one_by_one() -> float:
            with tracker.run("one by one") as run:
                started = time.perf_counter()
                for step in range(steps // 40):
                    for name in ("train/loss", "train/lr", "train/grad_norm"):
                        tracker.client.log_metric(run.id, name, 1.0, step=step)
                return 1000 * (time.perf_counter() - started) / (3 * steps // 40)

        return [
            alternate(
                "logging a metric: batched against one by one",
                batched,
                one_by_one,
                unit="ms",
                goal="<= 0.1",
                n=3,
            )
        ]
