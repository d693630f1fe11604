"""The command line: its commands, each with the file that has it.

Exit codes: 0 done, 1 a run failed or a bug, 2 wrong input, 130 interrupted, 141 the reader of the
output ended (broken pipe), 143 terminated, 129 hung up.
"""

from __future__ import annotations

import argparse
import os
import shlex
import signal
import sys
import warnings
from collections.abc import Iterable, Sequence
from importlib import import_module, metadata
from typing import Any

from benchmark import unit
from benchmark.parser import Parser, add_command, read_options
from cliptex_common.errors import hide_secrets, user_error_message
from cliptex_common.files import shorten_socket_paths

# Waiting OpenMP threads spin by default. Beside loading processes on two cores that made a forward
# pass eleven times slower. torch reads the variable when it is imported, so it is set here.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

PROGRAM = "python -m benchmark"
# command → its file in this folder, and what it does
COMMANDS = {
    "run": ("runs", "probe backbones on a suite's tasks and log the results to MLflow"),
    "watch": ("runs", "probe the checkpoints of a folder while a training writes them"),
    "list": ("looking", "list backbones, tasks, suites, recipes, experts, executors …"),
    "new": (
        "new",
        "write a plugin to begin from: your own backbone, dataset, probe, task or expert",
    ),
    "data": ("data", "check which datasets are present, and download them"),
    "doctor": ("doctor", "check that this machine is ready"),
    "experts": ("making", "train the models that write pseudo-labels"),
    "labels": (
        "making",
        "predict pseudo-labels of image-caption pairs, store manual ones, check and draw",
    ),
    "sweep": ("sweep", "search λs with Optuna: launch, best"),
    "train": ("making", "train a backbone by a recipe: clip, clip-ft, cliptex"),
    "cache": ("data", "list and remove reusable artifacts: features, weights, labels …"),
    "report": ("looking", "compare the results in MLflow: a page, and tables for a paper"),
    "results": ("looking", "share results in one file, check and show shared ones"),
    "reproduce": ("runs", "run a published protocol and compare with the published number"),
    "show": (
        "looking",
        "draw the features of backbones on images of a folder: components and likeness",
    ),
    "ui": ("looking", "open MLflow's own UI on the right store"),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code."""
    argv = list(sys.argv[1:] if argv is None else argv)
    unit.handle_signals()
    shorten_socket_paths()
    if not sys.warnoptions:  # libraries' deprecation notes are not for users
        warnings.simplefilter("ignore")
    try:
        try:
            command = parse(argv)
        except SystemExit as exit_:  # after --help and the like
            return int(exit_.code or 0)
        code = command.main()
        sys.stdout.flush()  # raises here if the disk behind `> FILE` is full
        if unit.received():  # it waited for an import, or a library swallowed it
            return _interrupted(argv)
        return code
    except SystemExit as exit_:
        sys.stderr.write(f"error: a plugin or library called exit({exit_.code!r})\n")
        return 1
    except KeyboardInterrupt:
        return _interrupted(argv)
    except BrokenPipeError:  # `… list tasks | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + signal.SIGPIPE
    except Exception as error:
        if unit.received():  # an error after the signal is part of the interruption
            return _interrupted(argv)
        message = user_error_message(error)
        if message is None:
            raise
        line = f"error: {message}\n".encode(errors="backslashreplace")  # names that are not UTF-8
        sys.stderr.write(line.decode())
        return 2


def parser(only: Iterable[str] = COMMANDS) -> argparse.ArgumentParser:
    """The parser of the command line.

    Args:
        only: commands to add with their options. Others are only listed, which saves the import of
            their modules.
    """
    top = Parser(prog=PROGRAM, description="Is this backbone better, at what, and by how much?")
    version = f"cliptex-benchmark {metadata.version('cliptex-benchmark')}"
    top.add_argument("--version", action="version", version=version)
    commands = top.add_subparsers(required=True, metavar="command", parser_class=Parser)
    for name, (module, about) in COMMANDS.items():
        command = commands.add_parser(name, help=about)
        if name in only:
            commands_file = import_module(f"benchmark.commands.{module}")
            add_command(command, getattr(commands_file, f"{name.upper()}_COMMAND"))
    return top


def parse(argv: Sequence[str]) -> Any:
    """The command with its options, see ``benchmark.parser``. Raises ``UserError``, and
    ``SystemExit`` after ``--help`` and the like."""
    only = [word for word in argv if word in COMMANDS][:1]
    return read_options(vars(parser(only).parse_args(argv)))


def _interrupted(argv: Sequence[str]) -> int:
    code = 128 + (unit.received() or signal.SIGINT)
    unit.exit_on_next_signal(code)
    command = hide_secrets(shlex.join(argv))
    sys.stderr.write(f"\ninterrupted; finished work is kept. Go on with: {PROGRAM} {command}\n")
    return code
