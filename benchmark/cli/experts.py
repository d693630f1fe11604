"""``experts train``: train a model that writes pseudo-labels."""

from __future__ import annotations

import argparse
import asyncio

from benchmark.cli.options import add, add_execution, add_tracking, executor_spec, folder
from benchmark.cli.parser import add_command, add_commands, with_examples


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of ``experts``."""
    with_examples(parser, "train unet --data-root DIR --out unet/", "train --help")
    train = add_command(
        add_commands(parser, "what"),
        "train",
        "train an expert on a dataset in its official layout and evaluate it",
        "unet --data-root DIR --out unet/",
        "dpt --data-root DIR --set epochs=4 --out dpt/ --device cuda",
    )
    train.add_argument("name", metavar="NAME", help="the expert; see `list experts`")
    add(train, "--config")
    add(
        train,
        "--data-root",
        required=True,
        help="folder with coco/ (seg) or nyu/ (depth, normal), train and val",
    )
    add(train, "--out", type=folder, required=True, metavar="DIR", help="output folder")
    add(train, "--set", help="change a setting of its training (repeatable): size, epochs, lr …")
    add(train, "--seed")
    add_execution(train)
    add_tracking(train, "experts")


def main(options: argparse.Namespace) -> int:
    """Train one expert."""
    from benchmark.execution.progress import console
    from benchmark.stages.experts import ExpertTraining, expert_stage
    from benchmark.stages.stage import open_executor_and_tracker
    from common.settings import parse_pairs
    from reports.mlflow.client import using

    inputs = ExpertTraining(
        options.name,
        options.data_root.absolute(),
        options.out.absolute(),
        parse_pairs(options.overrides),
        options.seed,
        experiment=options.experiment,
    )
    spec = executor_spec(options)
    with (
        using(options.tracking_uri),
        open_executor_and_tracker(spec, options.experiment) as (executor, _),
    ):
        asyncio.run(expert_stage(inputs, executor))
    arguments = f"--experts {options.name}={options.out} --pairs … --out …"
    console.print(f"label with it: python -m benchmark labels predict {arguments}")
    return 0
