"""``estimate``: hours, GPU-hours and disk of labelling and training on many GPUs, from the speed of one."""

from __future__ import annotations

import argparse

from backbones.utils.errors import UserError
from benchmark.cli.options import comma_separated


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of ``estimate``."""
    add = parser.add_argument
    add("--pairs", type=above_zero, default=3_300_000, help="how many (default: CC3M's 3.3 million)")
    add("--epochs", type=above_zero, default=30, help="of the training (default: 30, the paper's)")
    add(
        "--label-speed",
        type=above_zero,
        required=True,
        metavar="N",
        help="images a second of one GPU, all experts together",
    )
    add("--train-speed", type=above_zero, required=True, metavar="N", help="images a second of one GPU in training")
    add(
        "--label-bytes",
        type=above_zero,
        default=12_000,
        help="of an image's labels (default: 12000, the most that is aimed at)",
    )
    add("--gpus", default="8,64", metavar="N,…", help="a row for each (default: 8,64)")


def above_zero(text: str) -> float:
    """The type of an option: a finite number above 0."""
    value = float(text)
    if not 1e-12 < value < 1e18:
        raise argparse.ArgumentTypeError(f"{text[:20]}: must be above 0 (and below 1e18)")
    return value


def main(options: argparse.Namespace) -> int:
    """Print the table."""
    from benchmark.execution.progress import console
    from benchmark.pipeline.estimate import scale_table

    gpus = [int(word) if word.isdecimal() and len(word) < 10 else 0 for word in comma_separated(options.gpus)]
    if not gpus or 0 in gpus:
        raise UserError(f"--gpus {options.gpus}: give whole numbers above 0, such as 8,64")
    speeds = options.label_speed, options.train_speed
    table = scale_table(round(options.pairs), options.epochs, *speeds, options.label_bytes, gpus)
    console.print(table, markup=False, soft_wrap=True)
    return 0
