"""Options that several verbs share."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from backbones.errors import UserError


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


def placed(pairs: Sequence[str]) -> dict[str, Path]:
    """``["coco=/data/coco"]`` → ``{"coco": Path("/data/coco")}``; raises ``UserError`` for another form."""
    result = {}
    for pair in pairs:
        name, equals, folder = pair.partition("=")
        if not equals or not name or not folder:
            raise UserError(f"--data {pair!r} is not of the form NAME=DIR")
        result[name] = Path(folder).expanduser()
    return result
