"""The share of a run's time that tracking takes."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from functools import wraps
from pathlib import Path
from typing import Any

from tests.performance.harness import Result, bench, print_result

TRACKING = (
    "log_params",
    "log_metrics",
    "set_tags",
    "describe",
    "log_dataset",
    "log_file",
    "log_text",
    "log_json",
    "flush",
)


@bench
def run() -> list[Result]:
    """One cell of the smoke suite, trained for 300 iterations, with every call into tracking
    timed."""
    from benchmark import options
    from benchmark import run as runner
    from benchmark.execution import ExecutorSpec
    from reports.mlflow import run as tracking
    from reports.mlflow.client import using

    clock = {"inside": 0.0, "depth": 0}

    def timed(function: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(function)
        def wrapper(*args: Any, **kwargs: Any) -> Any:
            clock["depth"] += 1
            started = time.perf_counter()
            try:
                return function(*args, **kwargs)
            finally:
                clock["depth"] -= 1
                if not clock["depth"]:
                    clock["inside"] += time.perf_counter() - started

        return wrapper

    original = {name: getattr(tracking.Run, name) for name in TRACKING}
    before = Path.cwd()
    with tempfile.TemporaryDirectory() as folder, using(f"sqlite:///{folder}/mlflow.db"):
        try:
            os.chdir(folder)
            request = options.RunOptions(
                backbones=["efficientnet-lite0"],
                suite="smoke",
                tasks=["mini-seg/linear"],
                overrides=["max_iters=300"],
                executor=ExecutorSpec(jobs=1),  # in this process, where the calls are timed
            )
            runner.run(request)  # makes the world and warms everything up
            for name, function in original.items():
                setattr(tracking.Run, name, timed(function))
            started = time.perf_counter()
            runner.run(replace(request, force=True))
            seconds = time.perf_counter() - started
        finally:
            os.chdir(before)
            for name, function in original.items():
                setattr(tracking.Run, name, function)
    share = Result(
        "tracking: seconds in it against seconds of the run",
        clock["inside"],
        seconds,
        clock["inside"] / seconds,
        "<= 0.01",
        "s",
        1,
    )
    print_result(share)
    return [share]
