"""``experts list`` and ``experts train``: the models that write pseudo-labels."""

from __future__ import annotations

import argparse
from pathlib import Path

from benchmark.cli.options import add_tracking, at_least


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of ``experts``."""
    verbs = parser.add_subparsers(dest="what", required=True)
    verbs.add_parser("list", help="names, one line each")
    train = verbs.add_parser("train", help="train one on a folder in the official layouts, and measure it on truth")
    train.add_argument("name")
    train.add_argument(
        "--data",
        type=Path,
        required=True,
        metavar="DIR",
        help="with coco/ (seg) or nyu/ (depth, normal), train and val",
    )
    train.add_argument("--out", type=Path, required=True, metavar="DIR")
    train.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", dest="changes", help="size, epochs, lr …"
    )
    train.add_argument("--seed", type=int, default=0)
    train.add_argument("--device", default="auto")
    train.add_argument("--experiment", default="experts", help="MLflow experiment (default: experts)")
    add_tracking(train)


def main(options: argparse.Namespace) -> int:
    """List, or train one expert and say how well it does."""
    import probes.experts  # noqa: F401 – makes the expert known that needs MMDetection
    from backbones.cliptex.experts.registry import EXPERTS
    from benchmark.execution.progress import Bar, console

    if options.what == "list":
        for name, about in sorted(EXPERTS.described().items()):
            console.print(f"{name:<12} {about}", markup=False)
        return 0
    from backbones.overrides import parse_pairs
    from benchmark.evaluation.runner import choose_device
    from benchmark.stages import expert_stage
    from reports.tracking import Tracker

    at_least(0, seed=options.seed)
    tracker = Tracker(options.experiment, options.tracking_uri)
    tracker.close_vanished()
    with Bar() as bar:
        expert_stage(
            tracker,
            options.name,
            options.data,
            options.out,
            settings=parse_pairs(options.changes),
            seed=options.seed,
            bar=bar,
            device=choose_device(options.device),
        )
    console.print(f"label with it: python -m benchmark label --experts {options.name}={options.out} --pairs … --out …")
    return 0
