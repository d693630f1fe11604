"""``python -m benchmark``: one command, one module. Exit codes: 0 done, 1 a run failed, 2 wrong
input, 130 interrupted."""

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

if (
    __name__ == "__main__"
):  # what is imported now is not half imported, and nothing has begun that could be saved
    signal.signal(signal.SIGINT, lambda number, frame: os._exit(128 + number))

from benchmark.cli.parser import Parser, add_commands, with_examples
from benchmark.execution import interrupts, streams
from common.errors import UserError, user_error_message
from common.secrets import hide_secrets

# OpenMP's threads spin while they wait, by default. Beside loading processes on few cores that made
# a forward pass eleven times slower (measured on two cores); read when torch is imported, which is
# after this.
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


def _module(command: str) -> Any:
    return import_module(f"benchmark.cli.{command}")


class _Version(argparse.Action):
    def __call__(self, parser: argparse.ArgumentParser, *told: Any) -> None:
        from importlib.metadata import version

        sys.stdout.write(f"cliptex-benchmark {version('cliptex-benchmark')}\n")
        parser.exit()


class _Completion(argparse.Action):
    def __call__(
        self, parser_: argparse.ArgumentParser, namespace: Any, values: Any, *told: Any
    ) -> None:
        import shtab

        sys.stdout.write(shtab.complete(parser(prog="cliptex-benchmark"), shell=values) + "\n")
        parser_.exit()


def parser(only: str | None = None, prog: str = "python -m benchmark") -> argparse.ArgumentParser:
    """The command line's parser; ``only`` builds just that command's options, so that quick ones
    start quickly."""
    top = Parser(prog=prog, description="Is this backbone better, at what, and by how much?")
    with_examples(top, "run --backbone cliptex", "list backbones dino")
    top.add_argument("--version", action=_Version, nargs=0, help="say which version this is")
    about = (
        "print a script that completes words of `cliptex-benchmark`: source <(cliptex-benchmark"
        " --completion bash)"
    )
    top.add_argument(
        "--completion", action=_Completion, choices=("bash", "zsh", "tcsh"), help=about
    )
    commands = add_commands(top, "command")
    for command, about in COMMANDS.items():
        sub = commands.add_parser(command, help=about, description=about)
        if only in (None, command):
            _module(command).add_arguments(sub)
    return top


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code."""
    argv = list(sys.argv[1:] if argv is None else argv)
    interrupts.install()
    # Libraries' own deprecation notes are not for users; -W or PYTHONWARNINGS brings them back.
    if not sys.warnoptions:
        warnings.simplefilter("ignore")
    try:
        if sys.flags.optimize > 1:
            raise UserError(
                "python -OO takes away the docstrings that transformers reads; leave it"
                " (PYTHONOPTIMIZE=2) out"
            )
        code = _run(argv)
        if sys.stdout is not None:  # it may be closed
            sys.stdout.flush()  # a full disk behind `> FILE` is said here, not lost at the end
        return code
    except KeyboardInterrupt:
        return _interrupted(argv)
    except BrokenPipeError:  # `… list tasks | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + signal.SIGPIPE
    except Exception as error:
        if interrupts.received():  # whatever breaks then is the interruption
            return _interrupted(argv)
        message = user_error_message(error)
        if message is None:
            raise
        sys.stderr.write(f"error: {message}\n")
        return 2


def _run(argv: Sequence[str]) -> int:
    """The command's exit code; that of ``--help`` and its like too."""
    command = next((word for word in argv if word in COMMANDS), None)
    try:
        options = parser(command).parse_args(argv)
    except SystemExit as said:
        return int(said.code or 0)
    return int(_module(options.command).main(options) or 0)


def _interrupted(argv: Sequence[str]) -> int:
    code = 128 + (interrupts.received() or signal.SIGINT)
    interrupts.leave(code)
    command = hide_secrets(shlex.join(argv))
    sys.stderr.write(
        f"\ninterrupted; what was finished is kept. Go on with: python -m benchmark {command}\n"
    )
    return code


if __name__ == "__main__":
    streams.install()
    code = main()
    interrupts.leave(code)
    raise SystemExit(code)
