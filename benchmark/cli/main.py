"""The command line: one module for each command.

Exit codes: 0 done, 1 a run failed or a bug, 2 wrong input, 130 interrupted, 141 the reader of the
output ended (broken pipe), 143 terminated.
"""

from __future__ import annotations

import argparse
import os
import shlex
import signal
import sys
import warnings
from collections.abc import Sequence
from importlib import import_module
from typing import Any

from benchmark.cli.parser import Parser, add_commands, with_examples
from benchmark.execution import interrupts
from common.errors import user_error_message
from common.files import shorten_socket_paths
from common.secrets import hide_secrets

# Waiting OpenMP threads spin by default. Beside loading processes on two cores that made a forward
# pass eleven times slower. Read when torch is imported.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

COMMANDS = {
    "run": "probe backbones on a suite's tasks and log the results to MLflow",
    "watch": "probe the checkpoints of a folder while a training writes them",
    "list": "list backbones, tasks, suites, recipes, experts, executors …",
    "data": "check which datasets are present, and download them",
    "doctor": "check that this machine is ready",
    "experts": "train the models that write pseudo-labels",
    "labels": "predict pseudo-labels of image-caption pairs, store manual ones, check and draw",
    "sweep": "search λs with Optuna: launch, status, best, show",
    "train": "train a backbone by a recipe: clip, clip-ft, cliptex",
    "cache": "list and remove reusable artifacts: features, weights, labels …",
    "report": "compare the results in MLflow: a page, and tables for a paper",
    "ui": "open MLflow's own UI on the right store",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code."""
    argv = list(sys.argv[1:] if argv is None else argv)
    interrupts.install()
    shorten_socket_paths()
    if not sys.warnoptions:  # libraries' deprecation notes are not for users
        warnings.simplefilter("ignore")
    try:
        code = _run(argv)
        if sys.stdout is not None:  # it may be closed
            sys.stdout.flush()  # raises here if the disk behind `> FILE` is full
        return code
    except KeyboardInterrupt:
        return _interrupted(argv)
    except BrokenPipeError:  # `… list tasks | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + signal.SIGPIPE
    except Exception as error:
        if interrupts.received():  # an error after the signal is part of the interruption
            return _interrupted(argv)
        message = user_error_message(error)
        if message is None:
            raise
        sys.stderr.write(f"error: {message}\n")
        return 2


def parser(only: str | None = None, prog: str = "python -m benchmark") -> argparse.ArgumentParser:
    """The parser of the command line; with ``only`` the options of one command alone, which avoids
    imports."""
    top = Parser(prog=prog, description="Is this backbone better, at what, and by how much?")
    with_examples(top, "run --backbone cliptex", "list backbones dino")
    top.add_argument("--version", action=_Version, nargs=0, help="print the version")
    top.add_argument(
        "--completion",
        action=_Completion,
        choices=("bash", "zsh", "tcsh"),
        help=(
            "print a script that completes words of `cliptex-benchmark`: source"
            " <(cliptex-benchmark --completion bash)"
        ),
    )
    commands = add_commands(top, "command")
    for command, about in COMMANDS.items():
        sub = commands.add_parser(command, help=about, description=about)
        if only in (None, command):
            _module(command).add_arguments(sub)
    return top


def _module(command: str) -> Any:
    return import_module(f"benchmark.cli.{command}")


class _Version(argparse.Action):
    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> None:
        from importlib.metadata import version

        sys.stdout.write(f"cliptex-benchmark {version('cliptex-benchmark')}\n")
        parser.exit()


class _Completion(argparse.Action):
    def __call__(
        self, parser_: argparse.ArgumentParser, namespace: Any, values: Any, *_: Any
    ) -> None:
        import shtab

        sys.stdout.write(shtab.complete(parser(prog="cliptex-benchmark"), shell=values) + "\n")
        parser_.exit()


def _run(argv: Sequence[str]) -> int:
    """The command's exit code, also that of ``--help`` and the like."""
    command = next((word for word in argv if word in COMMANDS), None)
    try:
        options = parser(command).parse_args(argv)
    except SystemExit as exit_:
        return int(exit_.code or 0)
    return int(_module(options.command).main(options) or 0)


def _interrupted(argv: Sequence[str]) -> int:
    code = 128 + (interrupts.received() or signal.SIGINT)
    interrupts.leave(code)
    command = hide_secrets(shlex.join(argv))
    sys.stderr.write(
        f"\ninterrupted; finished work is kept. Go on with: python -m benchmark {command}\n"
    )
    return code
