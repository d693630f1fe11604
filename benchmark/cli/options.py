"""The options of all commands, each said once: a word means the same wherever it stands."""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from common.errors import UserError
from common.files import MAX_SEED

if TYPE_CHECKING:
    from benchmark.execution import ExecutorSpec

COUNT = 10_000  # more of anything than a command has


def number(least: float, most: float = math.inf, kind: type = int) -> Callable[[str], Any]:
    """The type of an option: a finite number from ``least`` to ``most``, both included."""

    def read(text: str) -> Any:
        value = kind(text)
        if not least <= value <= most or value == math.inf:
            told = (
                f"at least {least:.15g}"
                if most == math.inf or not value >= least
                else f"at most {most:.15g}"
            )
            raise argparse.ArgumentTypeError(f"{text[:40]}: must be {told}")
        return value

    read.__name__ = {int: "whole number", float: "number"}[
        kind
    ]  # argparse says it of text that is none
    return read


def name(text: str) -> str:
    """The type of an option: a name that MLflow and a terminal can hold."""
    if not text.strip() or len(text) > 200 or not text.isprintable() or "," in text:
        raise argparse.ArgumentTypeError(
            f"{text[:40]!r}: must be a name of 1 to 200 printable characters, no comma among them,"
            " and not only blanks"
        )
    return text


def names(text: str) -> list[str]:
    """The type of an option: ``"a, b"`` → ``["a", "b"]``."""
    if not (parts := [part.strip() for part in text.split(",") if part.strip()]):
        raise argparse.ArgumentTypeError(f"{text!r} names nothing; give names separated by commas")
    return parts


def folder(text: str) -> Path:
    """The type of an option: a folder, which need not be there yet."""
    if (path := Path(text)).exists() and not path.is_dir():
        raise argparse.ArgumentTypeError(f"{text} is a file; name a folder")
    return path


NAMES: dict[str, Any] = {
    "action": "extend",
    "type": names,
    "default": [],
}  # comma-separated and repeatable
PAIRS: dict[str, Any] = {"action": "append", "default": [], "metavar": "KEY=VALUE"}
FLAG: dict[str, Any] = {"action": "store_true"}

OPTIONS: dict[str, dict[str, Any]] = {
    "--backbone": (
        NAMES
        | {
            "dest": "backbones",
            "metavar": "NAME[,NAME]",
            "help": "backbones to probe; see `list backbones`",
        }
    ),
    "--suite": {"metavar": "NAME", "help": "a named list of tasks; see `list suites`"},
    "--task": (
        NAMES
        | {
            "dest": "tasks",
            "metavar": "TASK[,TASK]",
            "help": "only these tasks; see `list tasks`",
        }
    ),
    "--seed": {
        "type": number(0, MAX_SEED),
        "default": 0,
        "metavar": "N",
        "help": "of all that is random (default: 0)",
    },
    "--set": PAIRS | {"dest": "overrides", "help": "change a setting of the tasks (repeatable)"},
    "--recipe": {
        "default": "cliptex",
        "metavar": "NAME|FILE",
        "help": (
            "how weights are trained: a name of `list recipes`, or a .json/.toml file (default:"
            " cliptex)"
        ),
    },
    "--init": {
        "metavar": "WEIGHTS",
        "help": (
            "initial weights: open_clip/ARCH/PRETRAINED, a weights file of this suite, random, "
            "or imagenet (the recipe's model, its timm image tower with ImageNet weights)"
        ),
    },
    "--pairs": {
        "metavar": "SHARDS|CSV",
        "help": (
            "image-caption pairs: webdataset tars ('cc3m/{00000..00331}.tar', also on "
            "https:// or s3://), CSV or TSV"
        ),
    },
    "--labels": {
        "type": Path,
        "metavar": "DIR",
        "help": "the pairs' pseudo-labels, of `labels predict`",
    },
    "--out": {"type": Path, "metavar": "FILE", "help": "where the result goes"},
    # where datasets are, and how much of them counts
    "--data-root": {
        "type": Path,
        "metavar": "DIR",
        "help": "folder in OpenMMLab's tree (VOCdevkit/VOC2012, coco, nyu …)",
    },
    "--data": (
        PAIRS
        | {
            "metavar": "NAME=DIR",
            "help": "where one dataset is (repeatable; beats --data-root)",
        }
    ),
    "--partial": FLAG | {"help": "run on datasets that are not whole; then part of the protocol"},
    "--limit": {"type": number(1), "metavar": "N", "help": "only N of them"},
    # who computes
    "--executor": {
        "default": "local",
        "metavar": "NAME",
        "help": "local (default), slurm, ray; see `list executors`",
    },
    "--executor-arg": (
        PAIRS
        | {
            "help": (
                "a setting of the executor (repeatable): partition=gpu, time=240, address=auto …"
            )
        }
    ),
    "--jobs": {
        "type": number(0, COUNT),
        "default": 0,
        "metavar": "N",
        "help": (
            "tasks at once (default: as many as there are GPUs, or shares of the cores; 1: in this"
            " process)"
        ),
    },
    "--num-workers": {
        "type": number(0, 1024),
        "metavar": "N",
        "help": (
            "what loads images, for each task; never changes a result "
            "(default: cores divided by tasks at once; 2 on SLURM)"
        ),
    },
    "--device": {"default": "auto", "help": "cpu, cuda, cuda:1 … (default: auto)"},
    # where results go
    "--experiment": {"type": name, "metavar": "NAME", "help": "MLflow experiment"},
    "--tracking-uri": {
        "metavar": "URI",
        "help": "MLflow store (default: $MLFLOW_TRACKING_URI, else sqlite:///mlflow.db here)",
    },
    "--json": {
        "nargs": "?",
        "const": "-",
        "metavar": "FILE",
        "help": "the same as JSON: into FILE, or without one instead of the lines",
    },
    "--dry-run": (
        FLAG | {"help": "say what is done, what is to do and what that costs; makes nothing"}
    ),
    "--config": {
        "type": Path,
        "metavar": "FILE",
        "help": "YAML or TOML file of these options; what is typed here beats it",
    },
}


def add(parser: Any, *flags: str, **changes: Any) -> None:
    """Give a parser (or a group of one) options of the table; ``changes`` are this command's own
    (``default``, ``help`` …)."""
    for flag in flags:
        parser.add_argument(flag, **{**OPTIONS[flag], **changes})


def add_data(parser: argparse.ArgumentParser, *, scored: bool = False) -> None:
    """Where the datasets are; of a command that scores on them also how much of them counts."""
    group = parser.add_argument_group("datasets")
    add(group, "--data-root", "--data")
    if scored:
        add(group, "--partial")
        about = "score only N test images of each dataset, evenly spaced; then part of the protocol"
        add(group, "--limit", help=about)


def add_execution(parser: argparse.ArgumentParser) -> None:
    """Who runs the units of work, and on what."""
    add(
        parser.add_argument_group("execution"),
        "--executor",
        "--executor-arg",
        "--jobs",
        "--num-workers",
        "--device",
    )


def add_tracking(
    parser: argparse.ArgumentParser, experiment: str | None = None, shown: str = ""
) -> None:
    """Which MLflow store, and which experiment by default (as ``shown``, where that depends); ''
    where none is written."""
    group = parser.add_argument_group("MLflow")
    if experiment != "":
        add(
            group,
            "--experiment",
            default=experiment,
            help=f"MLflow experiment (default: {experiment or shown})",
        )
    add(group, "--tracking-uri")


def executor_spec(options: argparse.Namespace) -> ExecutorSpec:
    """What ``add_execution`` was told. Raises ``UserError`` for a setting of another form."""
    from benchmark.execution import ExecutorSpec
    from common.settings import parse_pairs

    settings = parse_pairs(options.executor_arg)
    return ExecutorSpec(
        options.executor, settings, options.jobs, options.device, options.num_workers
    )


def placed(pairs: Sequence[str], option: str = "--data") -> dict[str, Path]:
    """``["coco=/data/coco"]`` → ``{"coco": Path("/data/coco")}``; raises ``UserError`` for another
    form."""
    result = {}
    for pair in pairs:
        name, equals, folder = pair.partition("=")
        if not equals or not name or not folder:
            raise UserError(f"{option} {pair!r} is not of the form NAME=DIR")
        result[name] = Path(folder).expanduser()
    return result


def gave_json(options: argparse.Namespace, value: Any) -> bool:
    """Put ``value`` where ``--json`` says; whether that was in the place of the lines."""
    text = (
        json.dumps(value, indent=2, ensure_ascii=False, default=str) + "\n" if options.json else ""
    )
    if options.json == "-":
        sys.stdout.write(text)
    elif options.json:
        from common.files import json_output_path, write_text

        write_text(json_output_path(Path(options.json)), text)
    return options.json == "-"
