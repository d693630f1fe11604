"""Options that several commands share."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from backbones.utils.errors import UserError

if TYPE_CHECKING:
    from benchmark.execution import ExecutorSpec


REPEATED: dict[str, Any] = {"action": "append", "default": []}


def add_data(parser: argparse.ArgumentParser) -> None:
    """Where the datasets are."""
    parser.add_argument(
        "--data-root", type=Path, metavar="DIR", help="folder in OpenMMLab's tree (VOCdevkit/VOC2012, coco, nyu …)"
    )
    parser.add_argument(
        "--data", **REPEATED, metavar="NAME=DIR", help="where one dataset is (repeatable; beats --data-root)"
    )


def add_tracking(parser: argparse.ArgumentParser) -> None:
    """Which MLflow store."""
    parser.add_argument(
        "--tracking-uri",
        metavar="URI",
        help="MLflow store (default: $MLFLOW_TRACKING_URI, else sqlite:///mlflow.db here)",
    )


def add_dry_run(parser: argparse.ArgumentParser) -> None:
    """Whether only to look."""
    about = "print what is done and to do, how long that takes and how large it gets; makes nothing"
    parser.add_argument("--dry-run", action="store_true", help=about)


def add_execution(parser: argparse.ArgumentParser) -> None:
    """Who runs the units of work, and on what."""
    add = parser.add_argument
    add("--executor", default="local", metavar="NAME", help="local (default), slurm, ray; see `list executors`")
    add(
        "--executor-arg",
        **REPEATED,
        metavar="KEY=VALUE",
        help="a setting of the executor (repeatable): partition=gpu, time=240, address=auto …",
    )
    add(
        "--jobs", type=at_least(0), default=0, metavar="N",
        help="tasks at once (default: as many as there are GPUs, or shares of the cores; 1: in this process)",
    )  # fmt: skip
    add(
        "--num-workers", type=at_least(0), metavar="N",
        help="loading processes of each task; never changes a result (default: cores divided by tasks at once; 2 on SLURM)",
    )  # fmt: skip
    add("--device", default="auto", help="cpu, cuda, cuda:1 … (default: auto)")


def executor_spec(options: argparse.Namespace) -> ExecutorSpec:
    """What ``add_execution`` was told. Raises ``UserError`` for a setting of another form."""
    from backbones.utils.overrides import parse_pairs
    from benchmark.execution import ExecutorSpec

    settings = parse_pairs(options.executor_arg)
    return ExecutorSpec(options.executor, settings, options.jobs, options.device, options.num_workers)


def at_least(least: int, kind: type = int) -> Callable[[str], Any]:
    """The type of an option: a number that is not below ``least``."""

    def number(text: str) -> Any:
        value = kind(text)
        if not value >= least:
            raise argparse.ArgumentTypeError(f"{text}: must be at least {least}")
        return value

    return number


def comma_separated(text: str) -> list[str]:
    """``"a, b"`` → ``["a", "b"]``."""
    return [part.strip() for part in text.split(",") if part.strip()]


def placed(pairs: Sequence[str], option: str = "--data") -> dict[str, Path]:
    """``["coco=/data/coco"]`` → ``{"coco": Path("/data/coco")}``; raises ``UserError`` for another form."""
    result = {}
    for pair in pairs:
        name, equals, folder = pair.partition("=")
        if not equals or not name or not folder:
            raise UserError(f"{option} {pair!r} is not of the form NAME=DIR")
        result[name] = Path(folder).expanduser()
    return result
