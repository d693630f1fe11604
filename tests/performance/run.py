"""The share of a run's time that tracking takes."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from functools import wraps
from typing import Any

import pytest

from tests.performance.harness import Result, bench, limited

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


@bench(iterations=4)
def run(iterations: int = 300) -> list[Result]:
    """One cell of the smoke suite, with every call into tracking timed."""
    from benchmark import options
    from benchmark import run as runner
    from reports import tracking
    from reports.store import using

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

    with (
        tempfile.TemporaryDirectory() as folder,
        using(f"sqlite:///{folder}/mlflow.db"),
        pytest.MonkeyPatch.context() as patch,
    ):
        patch.chdir(folder)
        request = options.RunOptions(
            backbones=["efficientnet-lite0"],
            suite="smoke",
            tasks=["mini-seg/linear"],
            overrides={"max_iters": str(iterations)},
            jobs=1,  # in this process, where the calls are timed
        )
        runner.run(request)  # makes the world and warms everything up
        for name in TRACKING:
            patch.setattr(tracking.Run, name, timed(getattr(tracking.Run, name)))
        started = time.perf_counter()
        runner.run(replace(request, force=True))
        seconds = time.perf_counter() - started
    name = "tracking: seconds in it against seconds of the run"
    return [limited(name, clock["inside"], seconds, "s", most=0.01)]
