"""Options that several verbs share."""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from backbones.errors import UserError

if TYPE_CHECKING:
    from benchmark.execution.progress import Bar


def add_data(parser: argparse.ArgumentParser) -> None:
    """Where the datasets are."""
    parser.add_argument(
        "--data-root", type=Path, metavar="DIR", help="folder in OpenMMLab's tree (VOCdevkit/VOC2012, coco, nyu …)"
    )
    parser.add_argument(
        "--data",
        action="append",
        default=[],
        metavar="NAME=DIR",
        help="where one dataset is (repeatable; beats --data-root)",
    )


def add_tracking(parser: argparse.ArgumentParser) -> None:
    """Which MLflow store."""
    parser.add_argument(
        "--tracking-uri",
        metavar="URI",
        help="MLflow store (default: $MLFLOW_TRACKING_URI, else sqlite:///mlflow.db here)",
    )


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
