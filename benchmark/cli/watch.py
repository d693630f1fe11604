"""``watch``: score the checkpoints of a folder as a training writes them."""

from __future__ import annotations

import argparse
from pathlib import Path

from benchmark.cli.options import (
    FLAG,
    add,
    add_data,
    add_execution,
    add_tracking,
    executor_spec,
    number,
    placed,
)
from benchmark.cli.parser import with_examples


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of ``watch``."""
    with_examples(
        parser,
        "--backbone cliptex --dir weights.steps/ --data-root DIR",
        "--backbone open_clip/ViT-B-16 --dir checkpoints/ --suite paper --task voc/linear"
        " --data-root DIR --once",
    )
    add(parser, "--config")
    parser.add_argument(
        "--backbone",
        required=True,
        metavar="NAME",
        help="what the checkpoints are of: cliptex, open_clip/ARCH …",
    )
    about = (
        "where they appear; the last number of a file's name is its step (`train --keep-every`"
        " writes OUT.steps/)"
    )
    parser.add_argument("--dir", type=Path, required=True, metavar="DIR", help=about)
    add(
        parser,
        "--suite",
        default="companion",
        help="a named list of tasks; see `list suites` (default: companion)",
    )
    add(parser, "--task", "--set", "--seed")
    about = "between two looks (default: 30)"
    parser.add_argument(
        "--every", type=number(0, kind=float), default=30.0, metavar="SECONDS", help=about
    )
    about = "end when this step is scored (default: go on until Ctrl-C)"
    parser.add_argument("--until", type=number(0), metavar="STEP", help=about)
    parser.add_argument("--once", **FLAG, help="score what is there, and end")
    add_data(parser, scored=True)
    add_execution(parser)
    add_tracking(parser, shown="the suite's name")


def main(options: argparse.Namespace) -> int:
    """Watch; show each checkpoint's table."""
    from benchmark.execution.progress import console
    from benchmark.results.outcome import RunResult
    from benchmark.results.table import show
    from benchmark.run import RunOptions
    from benchmark.watch import WatchOptions, watch
    from reports.mlflow.client import using

    def told(step: int, result: RunResult) -> None:
        show(result.tasks, result.cells)

    asked = RunOptions(
        (options.backbone,),
        options.suite,
        options.tasks,
        seed=options.seed,
        overrides=options.overrides,
        data_root=options.data_root,
        data=placed(options.data),
        partial=options.partial,
        limit=options.limit,
        executor=executor_spec(options),
        experiment=options.experiment,
        only=True,
    )
    with using(options.tracking_uri):
        failed = watch(
            WatchOptions(asked, options.dir, options.every, options.until, options.once), told
        )
    console.print(
        "curves by training step are in MLflow, in the run whose name begins with watch",
        markup=False,
    )
    return 1 if failed else 0
