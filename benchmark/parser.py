"""The command line: its commands, each with the file that has it, and their options.

A command is an options dataclass with a method ``main`` that returns the exit code; its docstring
is its help, and each field is an option, called by its alias if it has one.

Exit codes: 0 done, 1 a run failed or a bug, 2 wrong input, 130 interrupted, 141 the reader of the
output ended (broken pipe), 143 terminated, 129 hung up.
"""

from __future__ import annotations

import argparse
import inspect
import json
import os
import re
import shlex
import signal
import sys
import tomllib
import warnings
from collections.abc import Iterable, Mapping, Sequence
from importlib import import_module, metadata
from pathlib import Path
from textwrap import shorten
from typing import Annotated, Any, NoReturn, TypeVar

from pydantic import BeforeValidator

from benchmark.unit import exit_on_next_signal, handle_signals, received
from cliptex_common.errors import (
    RunFailed,
    UserError,
    error_summary,
    first_line,
    hide_secrets,
    suggest,
    user_error_message,
)
from cliptex_common.files import parse_file, shorten_socket_paths, write_text
from cliptex_common.registry import load_plugins
from cliptex_common.settings import (
    as_list,
    as_pairs,
    as_text,
    one_line_errors,
    options_dataclass,
    parse_pairs,
    value_types,
)

T = TypeVar("T")
# dictionaries in annotations are arguments of ``add_argument``
Positional = Annotated[T, {"nargs": None}]
Positionals = Annotated[T, {"nargs": "*"}, BeforeValidator(as_list)]
MAY_BE_EMPTY = "'' is a value"  # in the annotation of an option of which that is true


@options_dataclass
class ConfigOptions:
    """Options from a file."""

    config: Path | None = None
    """YAML or TOML file with options; options on the command line override it"""


@options_dataclass
class JsonOptions:
    """Output as JSON."""

    json: Annotated[str | None, {"const": "-"}] = None
    """write JSON to this file, or print it instead of the lines"""

    def output_json(self, value: Any) -> bool:
        """Write ``value`` if it is requested; returns whether it went to stdout, so that the
        caller prints nothing else."""
        text = json.dumps(value, indent=2, ensure_ascii=False, default=str) + "\n"
        if self.json == "-":
            sys.stdout.write(text)
        elif self.json:
            write_text(Path(self.json), text)
        return self.json == "-"


class Parser(argparse.ArgumentParser):
    """Reports errors in one line with the nearest name."""

    def __init__(self, **settings: Any) -> None:
        formatter = argparse.RawDescriptionHelpFormatter
        super().__init__(allow_abbrev=False, formatter_class=formatter, **settings)
        self.usual: Mapping[str, str] = {}  # group → options of the short help

    def format_help(self) -> str:
        """All options, or a line for each usual one of a command that has groups of them."""
        if not self.usual:
            return super().format_help()
        lines = [f"usage: {self.prog} [options]", str(self.description).partition("\n")[0]]
        actions = {action.dest: action for action in self._actions}
        for group, names in self.usual.items():
            for name in names.split():
                action = actions[name]
                value = "" if action.nargs == 0 else action.metavar or name.upper()
                flag, about = f"{action.option_strings[0]} {value}", str(action.help)
                about = shorten(re.split("[;:(]", about)[0], 43, placeholder=" …")
                lines.append(f"{group:<9}{flag:<28}{about}")
                group = ""
        return "\n".join([*lines, f"all options, with examples: {self.prog} --help-all", ""])

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}; see {self.prog} --help")

    def parse_known_args(self, args=None, namespace=None):
        namespace, unknown = super().parse_known_args(args, namespace)
        if unknown:
            flag = unknown[0].partition("=")[0]
            hint = f"; {suggest(flag, self._option_string_actions)}" if flag[0] == "-" else ""
            self.error(f"unknown argument {flag}{hint}")
        return namespace, unknown


class _FullHelp(argparse.Action):
    """Prints all options in full."""

    def __call__(self, parser: Any, *_: Any) -> None:
        parser.usual = {}
        parser.print_help()
        parser.exit()


def add_command(parser: Any, command: Any) -> None:
    """Let a parser parse a command, or one of several by name."""
    if isinstance(command, Mapping):
        commands = parser.add_subparsers(required=True, metavar="command", parser_class=Parser)
        for name, each in command.items():
            add_command(commands.add_parser(name, help=each.__doc__.partition("\n")[0]), each)
        return
    parser.description = inspect.getdoc(command)
    parser.set_defaults(command=command)
    fields: dict[str, Any] = {}  # in the order of definition, the command's own first
    for cls in command.__mro__:
        for name in vars(cls).get("__annotations__", ()):
            fields.setdefault(name, cls.__pydantic_fields__[name])
    parser.usual = getattr(command, "help_groups", {})
    if parser.usual:
        parser.add_argument("--help-all", nargs=0, action=_FullHelp, help="all options, in full")
    for name, field in fields.items():
        _add_option(parser, name, field)


def _flag(name: str, field: Any) -> str:
    return "--" + (field.alias or name).replace("_", "-")


def _add_option(parser: argparse.ArgumentParser, name: str, field: Any) -> None:
    types = value_types(field.annotation)
    about = " ".join(field.description.split()).replace("%", "%%")
    if isinstance(field.default, int | float | str | Path) and field.default is not False:
        about += f" (default: {field.default})"
    if field.is_required():
        about += " (required)"
    settings: dict[str, Any] = {"help": about, "default": argparse.SUPPRESS}
    for each in field.metadata:
        settings |= each if isinstance(each, dict) else {}
    if "nargs" in settings:
        parser.add_argument(name, metavar=name.upper(), **settings)
        return
    if bool in types:
        settings["action"] = "store_true"
    elif Mapping in types or Sequence in types:
        settings["action"] = "append"
        settings["metavar"] = "KEY=VALUE" if Mapping in types else "A[,B]"
        if field.annotation == Sequence[Path]:  # whose names may have commas
            settings["metavar"] = "FILE"
    elif "const" in settings:
        settings["nargs"] = "?"
    parser.add_argument(_flag(name, field), dest=name, **settings)


def read_options(from_line: Mapping[str, Any]) -> Any:
    """A command with the options of the command line and of its ``--config`` file.

    Args:
        from_line: ``command`` → the dataclass, and field name → its text or texts on the command
            line.

    Raises:
        UserError: an option is missing or not allowed, or the file cannot be read.
    """
    command, fields = from_line["command"], from_line["command"].__pydantic_fields__
    from_file = _read_file(Path(from_line["config"]), fields) if "config" in from_line else {}
    # empty texts of the file are as if left out, those of the line are refused below
    options = {name: text for name, text in {**from_file, **from_line}.items() if text}
    for name, field in fields.items():
        flag = _flag(name, field)
        if Mapping in value_types(field.annotation):  # the line changes single entries of the file
            entries = parse_pairs(from_file.get(name, ()), flag)
            options[name] = entries | parse_pairs(from_line.get(name, ()), flag)
        if MAY_BE_EMPTY in field.metadata and name in from_line:
            options[name] = from_line[name]
            continue
        if field.is_required() and not options.get(name):
            raise UserError(f"{flag} is missing")
        if from_line.get(name) == "":
            raise UserError(f"{flag} is empty; give a value, or leave it out")
    del options["command"]
    if "plugins" in fields:  # before options are validated, which may name what plugins register
        load_plugins(as_list(options.get("plugins", ())))
    with one_line_errors():
        return command(**options)


def _read_file(file: Path, fields: Mapping[str, Any]) -> dict[str, Any]:
    """Field → text or texts of an options file."""
    import yaml

    try:
        # BaseLoader: scalars stay what is written, such as 1e-3 or no
        loads = tomllib.loads if file.suffix == ".toml" else lambda t: yaml.load(t, yaml.BaseLoader)
        options = parse_file(file, loads)
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise UserError(f"cannot read --config {file}: {first_line(error)}") from error
    if not isinstance(options, dict):
        raise UserError(f"--config {file} must be a table of options, such as `suite: paper`")
    names = {name.replace("_", "-"): name for name in fields}
    names |= {_flag(name, field).removeprefix("--"): name for name, field in fields.items()}
    texts: dict[str, Any] = {}
    for option, value in options.items():
        key = option.replace("_", "-")
        if key not in names:
            raise UserError(f"--config {file}: no option {option!r}; {suggest(key, names)}")
        if isinstance(value, Mapping):
            texts[names[key]] = [f"{each}={text}" for each, text in as_pairs(value).items()]
        elif isinstance(value, list):
            texts[names[key]] = [as_text(key, each) for each in value]
        else:
            texts[names[key]] = as_text(key, value)
    return texts


# Waiting OpenMP threads spin by default. Beside loading processes on two cores that made a forward
# pass eleven times slower. torch reads the variable when it is imported, so it is set here.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

PROGRAM = "python -m benchmark"
# command → its file in ``benchmark.commands``, and what it does
COMMANDS = {
    "run": ("runs", "probe backbones on a suite's tasks and log the results to MLflow"),
    "watch": ("runs", "probe the checkpoints of a folder while a training writes them"),
    "list": ("looking", "list backbones, tasks, suites, recipes, experts, executors …"),
    "new": (
        "new",
        "write a plugin to begin from: your own backbone, dataset, probe, task or expert",
    ),
    "data": ("data", "check which datasets are present, look at their samples, and download them"),
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
    "power": ("power", "say which differences a comparison can find, before it is run"),
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
    handle_signals()
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
        if received():  # it waited for an import, or a library swallowed it
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
        if received():  # an error after the signal is part of the interruption
            return _interrupted(argv)
        message = user_error_message(error)
        if message is None and isinstance(error, RunFailed):
            sys.stderr.write(f"error: {error_summary(error)}\n")
            return 1
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
    """The command with its options. Raises ``UserError``, and ``SystemExit`` after ``--help`` and
    the like."""
    # the first word that is a command: only its options are imported; argparse finds it again
    only = [word for word in argv if word in COMMANDS][:1]
    return read_options(vars(parser(only).parse_args(argv)))


def _interrupted(argv: Sequence[str]) -> int:
    code = 128 + (received() or signal.SIGINT)
    exit_on_next_signal(code)
    command = hide_secrets(shlex.join(argv))
    sys.stderr.write(f"\ninterrupted; finished work is kept. Go on with: {PROGRAM} {command}\n")
    return code
