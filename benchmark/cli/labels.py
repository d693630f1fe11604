"""``labels check`` and ``labels draw``: is a label store whole, and what does it look like?"""

from __future__ import annotations

import argparse
from pathlib import Path

from benchmark.cli.options import at_least


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of ``labels``."""
    commands = parser.add_subparsers(dest="what", required=True)
    check = commands.add_parser("check", help="every byte as it was written, all counts agree")
    check.add_argument("dir", type=Path)
    draw = commands.add_parser("draw", help="a picture of labels beside images")
    draw.add_argument("dir", type=Path)
    draw.add_argument("--pairs", required=True, help="the pairs that were labelled")
    draw.add_argument("--out", type=Path, default=Path("labels.png"))
    draw.add_argument("-n", type=at_least(1), default=8, help="how many pairs (default: 8)")


def main(options: argparse.Namespace) -> int:
    """Exit code 1 when a store is damaged."""
    from backbones.cliptex.data.pairs import open_pairs
    from backbones.cliptex.labels.picture import draw_labels
    from backbones.cliptex.labels.store import LabelStore, check_labels
    from benchmark.execution.progress import console

    if options.what == "draw":
        draw_labels(options.dir, open_pairs(options.pairs), options.out, options.n)
        console.print(f"drawn: {options.out}")
        return 0
    wrong = check_labels(options.dir)
    for line in wrong:
        console.print(line, markup=False)
    if not wrong:
        console.print(f"{options.dir} is whole: {len(LabelStore(options.dir))} pairs labelled")
    return 1 if wrong else 0
