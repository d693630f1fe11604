"""``experts list`` and ``experts train``: the models that write pseudo-labels."""

from __future__ import annotations

import argparse
from pathlib import Path

from benchmark.cli.options import REPEATED, SEED, add_execution, add_tracking, executor_spec, folder, name, number


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of ``experts``."""
    commands = parser.add_subparsers(dest="what", required=True)
    commands.add_parser("list", help="names, one line each")
    train = commands.add_parser("train", help="train one on a folder in the official layouts, and measure it on truth")
    train.add_argument("name")
    train.add_argument(
        "--data",
        type=Path,
        required=True,
        metavar="DIR",
        help="with coco/ (seg) or nyu/ (depth, normal), train and val",
    )
    train.add_argument("--out", type=folder, required=True, metavar="DIR")
    train.add_argument("--set", **REPEATED, metavar="KEY=VALUE", dest="overrides", help="size, epochs, lr …")
    train.add_argument("--seed", type=number(0, SEED), default=0)
    train.add_argument("--experiment", type=name, default="experts", help="MLflow experiment (default: experts)")
    add_execution(train)
    add_tracking(train)


def main(options: argparse.Namespace) -> int:
    """List, or train one expert and say how well it does."""
    if options.what == "list":
        import probes.experts  # noqa: F401 – makes the expert known that needs MMDetection
        from backbones.cliptex.experts.registry import EXPERTS
        from benchmark.execution.progress import console

        for name, about in sorted(EXPERTS.described().items()):
            console.print(f"{name:<12} {about}", markup=False)
        return 0
    return _train(options)


def _train(options: argparse.Namespace) -> int:
    import asyncio

    from backbones.utils.overrides import parse_pairs
    from benchmark.execution.progress import console
    from benchmark.pipeline.experts import ExpertTraining, expert_stage
    from benchmark.pipeline.stage import driving
    from reports.mlflow.client import using

    inputs = ExpertTraining(
        options.name, options.data.absolute(), options.out.absolute(), parse_pairs(options.overrides), options.seed,
        experiment=options.experiment,
    )  # fmt: skip
    with using(options.tracking_uri), driving(executor_spec(options), options.experiment) as (executor, _):
        asyncio.run(expert_stage(inputs, executor))
    console.print(f"label with it: python -m benchmark label --experts {options.name}={options.out} --pairs … --out …")
    return 0
