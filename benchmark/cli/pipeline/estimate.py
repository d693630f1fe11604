"""``estimate``: hours, GPU-hours and disk of labelling and training on many GPUs, from the speed of
one."""

from __future__ import annotations

import argparse

from benchmark.cli.options import names
from benchmark.cli.parser import with_examples
from common.errors import UserError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of ``estimate``."""
    with_examples(
        parser,
        "--label-speed 47 --train-speed 776",
        "--pairs 12e6 --epochs 10 --label-speed 47 --train-speed 776 --gpus 8,32",
    )
    for flag, default, about in (
        ("--pairs", 3_300_000, "how many (default: CC3M's 3.3 million)"),
        ("--epochs", 30, "of the training (default: 30, the paper's)"),
        ("--label-speed", None, "images a second of one GPU, all experts together"),
        ("--train-speed", None, "images a second of one GPU in training"),
        (
            "--label-bytes",
            12_000,
            "of an image's labels (default: 12000, the most that is aimed at)",
        ),
    ):
        parser.add_argument(
            flag,
            type=above_zero,
            default=default,
            required=default is None,
            metavar="N",
            help=about,
        )
    parser.add_argument(
        "--gpus",
        type=names,
        default=["8", "64"],
        metavar="N[,N]",
        help="a row for each (default: 8,64)",
    )


def above_zero(text: str) -> float:
    """The type of an option: a finite number above 0."""
    value = float(text)
    if not 1e-12 < value < 1e18:
        raise argparse.ArgumentTypeError(f"{text[:20]}: must be above 0 (and below 1e18)")
    return value


def main(options: argparse.Namespace) -> int:
    """Print the table."""
    from benchmark.execution.progress import console
    from benchmark.stages.estimate import scale_table

    gpus = [int(word) if word.isdecimal() and len(word) < 10 else 0 for word in options.gpus]
    if not gpus or 0 in gpus:
        raise UserError(
            f"--gpus {','.join(options.gpus)}: give whole numbers above 0, such as 8,64"
        )
    speeds = options.label_speed, options.train_speed
    table = scale_table(round(options.pairs), options.epochs, *speeds, options.label_bytes, gpus)
    console.print(table, markup=False, soft_wrap=True)
    return 0
