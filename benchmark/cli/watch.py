"""``watch``: score the checkpoints of a folder as a training writes them."""

from __future__ import annotations

import argparse
from pathlib import Path

from benchmark.cli.options import (
    REPEATED,
    SEED,
    add_data,
    add_execution,
    add_tracking,
    executor_spec,
    name,
    number,
    placed,
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of ``watch``."""
    add = parser.add_argument
    add("--backbone", required=True, metavar="NAME", help="what the checkpoints are of: cliptex, open_clip/ARCH …")
    add(
        "--dir", type=Path, required=True, metavar="DIR",
        help="where they appear; the last number of a file's name is its step (`train --keep-every` writes OUT.steps/)",
    )  # fmt: skip
    add("--suite", default="companion", help="named list of tasks (default: companion); see `list suites`")
    add("--task", **REPEATED, dest="tasks", metavar="TASK[,TASK]", help="only these of the suite's tasks")
    add("--set", **REPEATED, metavar="KEY=VALUE", dest="overrides", help="change a setting of the tasks (repeatable)")
    add("--seed", type=number(0, SEED), default=0, help="random seed (default: 0)")
    add("--every", type=number(0, kind=float), default=30.0, metavar="SECONDS", help="between two looks (default: 30)")
    add("--until", type=number(0), metavar="STEP", help="end when this step is scored (default: go on until Ctrl-C)")
    add("--once", action="store_true", help="score what is there, and end")
    add_data(parser)
    add("--partial", action="store_true", help="run on datasets that are not whole; then part of the protocol")
    add_execution(parser)
    add("--experiment", type=name, help="MLflow experiment (default: the suite's name)")
    add_tracking(parser)


def main(options: argparse.Namespace) -> int:
    """Watch; show each checkpoint's table."""
    from benchmark.evaluation.results import RunResult
    from benchmark.evaluation.runner import RunOptions
    from benchmark.evaluation.table import show
    from benchmark.evaluation.watch import WatchOptions, watch
    from benchmark.execution.progress import console
    from reports.mlflow.client import using

    def told(step: int, result: RunResult) -> None:
        show(result.tasks, result.cells)

    asked = RunOptions(
        (options.backbone,), options.suite, options.tasks, seed=options.seed, overrides=options.overrides,
        data_root=options.data_root, data=placed(options.data), partial=options.partial, executor=executor_spec(options),
        experiment=options.experiment, alone=True,
    )  # fmt: skip
    with using(options.tracking_uri):
        failed = watch(WatchOptions(asked, options.dir, options.every, options.until, options.once), told)
    console.print("curves by training step are in MLflow, in the run whose name begins with watch", markup=False)
    return 1 if failed else 0
