"""The options of all commands, each declared once; commands may change help, default and arity."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from common.files import MAX_SEED, write_text

if TYPE_CHECKING:
    from benchmark.execution import ExecutorSpec
    from benchmark.options import RunOptions


def number(minimum: float, maximum: float | None = None, kind: type = int) -> Callable[[str], Any]:
    """The type of an option: a number from ``minimum`` to ``maximum``, both included."""

    def read(text: str) -> Any:
        value = kind(text)
        if not value >= minimum:
            raise argparse.ArgumentTypeError(f"{text}: must be at least {minimum}")
        if maximum is not None and value > maximum:
            raise argparse.ArgumentTypeError(f"{text}: must be at most {maximum}")
        return value

    read.__name__ = {int: "integer", float: "number"}[kind]  # for argparse's own message
    return read


def names(text: str) -> list[str]:
    """The type of an option: ``"a, b"`` → ``["a", "b"]``."""
    if not (parts := [part.strip() for part in text.split(",") if part.strip()]):
        raise argparse.ArgumentTypeError(f"{text!r} has no name; separate names by commas")
    return parts


def folder(text: str) -> Path:
    """The type of an option: a folder, which need not exist yet."""
    if (path := Path(text)).is_file():
        raise argparse.ArgumentTypeError(f"{text} is a file; give a folder")
    return path


# comma-separated and repeatable
NAMES: dict[str, Any] = {"action": "extend", "type": names, "default": []}
PAIRS: dict[str, Any] = {"action": "append", "default": [], "metavar": "KEY=VALUE"}
FLAG: dict[str, Any] = {"action": "store_true"}
SECONDS: dict[str, Any] = {"type": number(0, kind=float), "metavar": "SECONDS"}
COUNT: dict[str, Any] = {"type": number(1), "metavar": "N"}

OPTIONS: dict[str, dict[str, Any]] = {
    "--backbone": {
        **NAMES,
        "dest": "backbones",
        "metavar": "NAME[,NAME]",
        "help": "backbones to probe; see `list backbones`",
    },
    "--suite": {"metavar": "NAME", "help": "a named list of tasks; see `list suites`"},
    "--task": {
        **NAMES,
        "dest": "tasks",
        "metavar": "TASK[,TASK]",
        "help": "only these tasks; see `list tasks`",
    },
    "--seed": {
        "type": number(0, MAX_SEED),
        "default": 0,
        "metavar": "N",
        "help": "random seed (default: 0)",
    },
    "--set": {**PAIRS, "dest": "overrides", "help": "change a setting of the tasks (repeatable)"},
    "--recipe": {
        "default": "cliptex",
        "metavar": "NAME|FILE",
        "help": "training recipe: a name from `list recipes`, or a .json or .toml file "
        "(default: cliptex)",
    },
    "--init": {
        "metavar": "WEIGHTS",
        "help": "initial weights: open_clip/ARCH/PRETRAINED, a weights file of this suite, random, "
        "or imagenet (the recipe's model, its timm image tower with ImageNet weights)",
    },
    "--pairs": {
        "metavar": "SHARDS|CSV",
        "help": "image-caption pairs: webdataset tars ('cc3m/{00000..00331}.tar', also on "
        "https:// or s3://), CSV or TSV",
    },
    "--labels": {
        "type": Path,
        "metavar": "DIR",
        "help": "pseudo-labels of the pairs, from `labels predict`",
    },
    "--out": {"type": Path, "metavar": "FILE", "help": "output file"},
    # datasets
    "--data-root": {
        "type": Path,
        "metavar": "DIR",
        "help": "folder of datasets in OpenMMLab's layout (VOCdevkit/VOC2012, coco, nyu …)",
    },
    "--data": {
        **PAIRS,
        "metavar": "NAME=DIR",
        "help": "folder of one dataset (repeatable; overrides --data-root)",
    },
    "--partial": {
        **FLAG,
        "help": "accept incomplete datasets; results are not comparable with those on all images",
    },
    "--limit": {"type": number(1), "metavar": "N", "help": "only the first N"},
    # execution
    "--executor": {
        "default": "local",
        "metavar": "NAME",
        "help": "local (default), slurm or ray; see `list executors`",
    },
    "--executor-arg": {
        **PAIRS,
        "help": "a setting of the executor (repeatable): partition=gpu, time=240, address=auto …",
    },
    "--jobs": {
        "type": number(0),
        "default": 0,
        "metavar": "N",
        "help": "units of work at once (default: one per GPU or share of the cores; 1: in this "
        "process)",
    },
    "--num-workers": {
        "type": number(0),
        "metavar": "N",
        "help": "data-loading processes of each unit of work; on a CPU results do not depend on "
        "them (default: cores divided by units at once; 2 on SLURM)",
    },
    "--device": {"default": "auto", "help": "cpu, cuda, cuda:1 … (default: auto)"},
    # results
    "--experiment": {"metavar": "NAME", "help": "MLflow experiment"},
    "--tracking-uri": {
        "metavar": "URI",
        "help": "MLflow store (default: $MLFLOW_TRACKING_URI, else sqlite:///mlflow.db here)",
    },
    "--json": {
        "nargs": "?",
        "const": "-",
        "metavar": "FILE",
        "help": "write JSON to FILE, or print it instead of the lines",
    },
    "--dry-run": {**FLAG, "help": "show what would be done, and do nothing"},
    "--config": {
        "type": Path,
        "metavar": "FILE",
        "help": "YAML or TOML file with options; options on the command line override it",
    },
}


def add(parser: Any, *flags: str, **changes: Any) -> None:
    """Add options of the table to a parser or group, with ``changes`` such as ``default``."""
    for flag in flags:
        parser.add_argument(flag, **{**OPTIONS[flag], **changes})


def add_data(parser: argparse.ArgumentParser, *, scored: bool = False) -> None:
    """Add the folders of datasets and, if ``scored``, how much of them is used."""
    group = parser.add_argument_group("datasets")
    add(group, "--data-root", "--data")
    if scored:
        add(group, "--partial")
        limit = (
            "score only N val images of each dataset, evenly spaced; not comparable with runs on"
            " all images"
        )
        add(group, "--limit", help=limit)


def add_execution(parser: argparse.ArgumentParser) -> None:
    """Add executor and device."""
    group = parser.add_argument_group("execution")
    add(group, "--executor", "--executor-arg", "--jobs", "--num-workers", "--device")


def add_tracking(
    parser: argparse.ArgumentParser, experiment: str | None = None, default: str = ""
) -> None:
    """Add ``--tracking-uri`` and ``--experiment``.

    Args:
        experiment: default of ``--experiment``; None if it depends on other options, as ``default``
            explains; '' for a command without ``--experiment``.
    """
    group = parser.add_argument_group("MLflow")
    if experiment != "":
        add(
            group,
            "--experiment",
            default=experiment,
            help=f"MLflow experiment (default: {experiment or default})",
        )
    add(group, "--tracking-uri")


def executor_spec(options: argparse.Namespace) -> ExecutorSpec:
    """The executor of ``add_execution``'s options. Raises ``UserError`` for a malformed setting."""
    from benchmark.execution import ExecutorSpec
    from common.settings import parse_pairs

    settings = parse_pairs(options.executor_arg, "--executor-arg")
    return ExecutorSpec(
        options.executor, settings, options.jobs, options.device, options.num_workers
    )


def run_options(options: argparse.Namespace, **changes: Any) -> RunOptions:
    """The ``RunOptions`` of a command's options, the rest as their defaults."""
    from benchmark.options import RunOptions

    values = {**vars(options), "data": parse_folders(options.data), **changes}
    values["executor"] = executor_spec(options)
    names = [field.name for field in fields(RunOptions)]
    return RunOptions(**{name: values[name] for name in names if name in values})


def parse_folders(pairs: Sequence[str], option: str = "--data") -> dict[str, Path]:
    """``["coco=/data/coco"]`` → ``{"coco": Path("/data/coco")}``.

    Raises:
        UserError: a pair is not of the form KEY=VALUE.
    """
    from common.settings import parse_pairs

    folders = parse_pairs(pairs, option)
    return {name: Path(folder).expanduser() for name, folder in folders.items()}


def output_json(
    options: argparse.Namespace, value: Mapping[str, Any] | Sequence[Mapping[str, Any]]
) -> bool:
    """Write ``value`` as ``--json`` says.

    Returns:
        True if JSON went to stdout, so that the caller prints nothing else.
    """
    if options.json:
        text = json.dumps(value, indent=2, ensure_ascii=False, default=str) + "\n"
        if options.json == "-":
            sys.stdout.write(text)
            return True
        write_text(Path(options.json), text)
    return False
