"""``watch``: probe the checkpoints of a folder while a training writes them."""

from __future__ import annotations

import argparse
from pathlib import Path

from benchmark.cli.options import (
    FLAG,
    SECONDS,
    add,
    add_data,
    add_execution,
    add_tracking,
    number,
    run_options,
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
    add(
        parser,
        "--backbone",
        required=True,
        metavar="NAME",
        help="backbone of the checkpoints: cliptex, open_clip/ARCH …",
    )
    parser.add_argument(
        "--dir",
        type=Path,
        required=True,
        metavar="DIR",
        help="folder of checkpoints; the last number in a file's name is its step",
    )
    add(
        parser,
        "--suite",
        default="companion",
        help="a named list of tasks; see `list suites` (default: companion)",
    )
    add(parser, "--task", "--set", "--seed")
    parser.add_argument(
        "--every", **SECONDS, default=30.0, help="between two looks at the folder (default: 30)"
    )
    parser.add_argument(
        "--until", type=number(0), metavar="STEP", help="end after this step (default: on Ctrl-C)"
    )
    parser.add_argument("--once", **FLAG, help="probe the present checkpoints and end")
    add_data(parser, scored=True)
    add_execution(parser)
    add_tracking(parser, default="the suite's name")


def main(options: argparse.Namespace) -> int:
    """Watch; print each checkpoint's table."""
    from benchmark.execution.progress import console
    from benchmark.options import WatchOptions
    from benchmark.results.table import show
    from benchmark.watch import watch
    from reports.mlflow.client import using

    request = run_options(options, only=True)
    settings = WatchOptions(
        run=request,
        folder=options.dir,
        every=options.every,
        until=options.until,
        once=options.once,
    )
    with using(options.tracking_uri):
        failed = watch(settings, lambda step, result: show(result))
    console.print("curves by training step: the MLflow run whose name begins with watch")
    return 1 if failed else 0
