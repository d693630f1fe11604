"""Options that several commands share."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from backbones.utils.errors import UserError
from backbones.utils.files import expanded

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
        "--jobs", type=number(0, COUNT), default=0, metavar="N",
        help="tasks at once (default: as many as there are GPUs, or shares of the cores; 1: in this process)",
    )  # fmt: skip
    add(
        "--num-workers", type=number(0, 1024), metavar="N",
        help="loading processes of each task; never changes a result (default: cores divided by tasks at once; 2 on SLURM)",
    )  # fmt: skip
    add("--device", default="auto", help="cpu, cuda, cuda:1 … (default: auto)")


def executor_spec(options: argparse.Namespace) -> ExecutorSpec:
    """What ``add_execution`` was told. Raises ``UserError`` for a setting of another form."""
    from backbones.utils.overrides import parse_pairs
    from benchmark.execution import ExecutorSpec

    settings = parse_pairs(options.executor_arg)
    return ExecutorSpec(options.executor, settings, options.jobs, options.device, options.num_workers)


SEED, COUNT = 2**31 - 1, 10_000  # the largest seed, which every library takes; more of anything than a command has


def number(least: float, most: float = math.inf, kind: type = int) -> Callable[[str], Any]:
    """The type of an option: a finite number from ``least`` to ``most``, both included."""

    def read(text: str) -> Any:
        value = kind(text)
        if not least <= value <= most or value == math.inf:
            told = f"at least {least:.15g}" if most == math.inf or not value >= least else f"at most {most:.15g}"
            raise argparse.ArgumentTypeError(f"{text[:40]}: must be {told}")
        return value

    read.__name__ = {int: "whole number", float: "number"}[kind]  # argparse says it of text that is none
    return read


def name(text: str) -> str:
    """The type of an option: a name that MLflow and a terminal can hold."""
    if not text.strip() or len(text) > 200 or not text.isprintable():
        raise argparse.ArgumentTypeError(
            f"{text[:40]!r}: must be a name of 1 to 200 printable characters, not only blanks"
        )
    return text


def folder(text: str) -> Path:
    """The type of an option: a folder, which need not be there yet."""
    if (path := Path(text)).exists() and not path.is_dir():
        raise argparse.ArgumentTypeError(f"{text} is a file; name a folder")
    return path


def comma_separated(text: str) -> list[str]:
    """``"a, b"`` → ``["a", "b"]``. Raises ``UserError`` where there is nothing."""
    if not (parts := [part.strip() for part in text.split(",") if part.strip()]):
        raise UserError(f"{text!r} names nothing; give names separated by commas")
    return parts


def placed(pairs: Sequence[str], option: str = "--data") -> dict[str, Path]:
    """``["coco=/data/coco"]`` → ``{"coco": Path("/data/coco")}``; raises ``UserError`` for another form."""
    result = {}
    for pair in pairs:
        name, equals, folder = pair.partition("=")
        if not equals or not name or not folder:
            raise UserError(f"{option} {pair!r} is not of the form NAME=DIR")
        result[name] = expanded(folder)
    return result
