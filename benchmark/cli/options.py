"""Options that several commands share."""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from backbones.errors import UserError

if TYPE_CHECKING:
    from benchmark.execution import ExecutorSpec
    from benchmark.execution.progress import Bar


REPEATED: dict[str, Any] = {"action": "append", "default": []}


def add_data(parser: argparse.ArgumentParser) -> None:
    """Where the datasets are."""
    parser.add_argument(
        "--data-root", type=Path, metavar="DIR", help="folder in OpenMMLab's tree (VOCdevkit/VOC2012, coco, nyu …)"
    )
    parser.add_argument(
        "--data", **REPEATED, metavar="NAME=DIR", help="where one dataset is (repeatable; beats --data-root)"
    )


def add_tracking(parser: argparse.ArgumentParser) -> None:
    """Which MLflow store."""
    parser.add_argument(
        "--tracking-uri",
        metavar="URI",
        help="MLflow store (default: $MLFLOW_TRACKING_URI, else sqlite:///mlflow.db here)",
    )


def add_execution(parser: argparse.ArgumentParser, num_workers: int | None = 2) -> None:
    """Who runs the units of work, and on what."""
    add = parser.add_argument
    add("--executor", default="local", metavar="NAME", help="local (default), slurm, ray; see `list executors`")
    add(
        "--executor-arg",
        **REPEATED,
        metavar="KEY=VALUE",
        help="a setting of the executor (repeatable): partition=gpu, time=240, address=auto …",
    )
    add(
        "--jobs", type=int, default=0, metavar="N",
        help="tasks at once (default: as many as there are GPUs, or shares of the cores; 1: in this process)",
    )  # fmt: skip
    add(
        "--num-workers", type=int, default=num_workers, metavar="N",
        help="data loading processes of each task; never changes a result (default: 2)",
    )  # fmt: skip
    add("--device", default="auto", help="cpu, cuda, cuda:1 … (default: auto)")


def executor_spec(options: argparse.Namespace) -> ExecutorSpec:
    """What ``add_execution`` was told. Raises ``UserError`` for a setting of another form."""
    from backbones.overrides import parse_pairs
    from benchmark.execution import ExecutorSpec

    at_least(0, jobs=options.jobs, num_workers=options.num_workers or 0)
    return ExecutorSpec(options.executor, parse_pairs(options.executor_arg), options.jobs, options.device)


def at_least(least: int, **values: float) -> None:
    """Raises ``UserError`` for the first value below ``least``; a value is named as its option is, with underscores."""
    for name, value in values.items():
        if not value >= least:
            option = f"-{name}" if len(name) == 1 else f"--{name.replace('_', '-')}"
            raise UserError(f"{option} {value}: must be at least {least}")


def placed(pairs: Sequence[str]) -> dict[str, Path]:
    """``["coco=/data/coco"]`` → ``{"coco": Path("/data/coco")}``; raises ``UserError`` for another form."""
    result = {}
    for pair in pairs:
        name, equals, folder = pair.partition("=")
        if not equals or not name or not folder:
            raise UserError(f"--data {pair!r} is not of the form NAME=DIR")
        result[name] = Path(folder).expanduser()
    return result


def bar_of_process() -> Bar:
    """A progress bar; the others that torchrun started say nothing."""
    from backbones.cliptex.processes import first_process
    from benchmark.execution.progress import Bar

    bar = Bar() if first_process() else Bar(every=math.inf)
    bar.live = bar.live and first_process()
    return bar
