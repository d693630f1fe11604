"""Commands from options dataclasses.

A command is an options dataclass with a method ``main`` that returns the exit code; its docstring
is its help, and each field is an option.
"""

from __future__ import annotations

import argparse
import inspect
import json
import sys
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, NoReturn, TypeVar

from cliptex_common.errors import UserError, first_line, nearest
from cliptex_common.files import write_text
from cliptex_common.plugins import load_plugins
from cliptex_common.settings import as_text, options_dataclass, origins, parse_pairs

T = TypeVar("T")
Positional = Annotated[T, {"nargs": 1}]
Positionals = Annotated[T, {"nargs": "*"}]

# field → option, where they differ
FLAGS = {
    "backbones": "backbone",
    "tasks": "task",
    "overrides": "set",
    "task_overrides": "set-task",
    "between": "range",
    "folders": "from",
    "plugins": "plugin",
    "shared": "with",
}


@options_dataclass
class ConfigOptions:
    """Options from a file."""

    config: Path | None = None
    """YAML or TOML file with options; options on the command line override it"""


@options_dataclass
class JsonOptions:
    """Output as JSON."""

    json: Annotated[str | None, {"nargs": "?", "const": "-"}] = None
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

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}; see {self.prog} --help")

    def parse_known_args(self, args=None, namespace=None):
        namespace, unknown = super().parse_known_args(args, namespace)
        if unknown:
            flag = unknown[0].partition("=")[0]
            hint = f"; {nearest(flag, self._option_string_actions)}" if flag[0] == "-" else ""
            self.error(f"unknown argument {flag}{hint}")
        return namespace, unknown


def add_command(parser: argparse.ArgumentParser, command: Any) -> None:
    """Let a parser parse a command, or one of several by name."""
    parser.description = inspect.getdoc(command)
    if isinstance(command, Mapping):
        parser.description = None
        commands = parser.add_subparsers(required=True, metavar="command", parser_class=Parser)
        for name, each in command.items():
            add_command(commands.add_parser(name, help=each.__doc__.partition("\n")[0]), each)
        return
    parser.set_defaults(command=command)
    # in the order of definition, the command's own first
    for cls in command.__mro__:
        for name in vars(cls).get("__annotations__", ()):
            if name not in {action.dest for action in parser._actions}:
                _add_option(parser, name, cls.__pydantic_fields__[name])


def _flag(name: str) -> str:
    return "--" + FLAGS.get(name, name).replace("_", "-")


def _add_option(parser: argparse.ArgumentParser, name: str, field: Any) -> None:
    types = origins(field.annotation)
    # every option collects a list of words; ``read_options`` decides which count
    settings: dict[str, Any] = {"action": "append"}
    for each in field.metadata:
        settings |= each if isinstance(each, dict) else {}
    about = " ".join(field.description.split()).replace("%", "%%")
    if isinstance(field.default, int | float | str | Path) and field.default is not False:
        about += f" (default: {field.default})"
    if field.is_required():
        about += " (required)"
    if bool in types:
        settings = {"action": "append_const", "const": "true"}
    elif Mapping in types:
        settings["metavar"] = "KEY=VALUE"
    elif Sequence in types:
        settings["metavar"] = "A[,B]"
    if settings.get("nargs") in (1, "*", "+"):
        parser.add_argument(name, nargs=settings["nargs"], metavar=name.upper(), help=about)
    else:
        parser.add_argument(_flag(name), dest=name, help=about, **settings)


def read_options(words: Mapping[str, Any]) -> Any:
    """A command with the options of the command line and of its ``--config`` file.

    Args:
        words: ``command`` → the dataclass, and field name → the words given for it.

    Raises:
        UserError: an option is missing or not allowed, or the file cannot be read.
    """
    command = words["command"]
    file = (words.get("config") or [None])[-1]
    stored = _read_file(Path(file), command.__pydantic_fields__) if file else {}
    values = {}
    for name, field in command.__pydantic_fields__.items():
        typed, saved, flag = words.get(name) or [], stored.get(name, []), _flag(name)
        types = origins(field.annotation)
        value: Any = typed or saved
        if Mapping in types:
            value = {**parse_pairs(saved, flag), **parse_pairs(typed, flag)}
        elif Sequence not in types:  # the last counts
            value = ",".join(typed[-1:] or saved)
        if value:
            values[name] = value
        elif field.is_required():
            raise UserError(f"{flag} is missing")
    if "plugins" in command.__pydantic_fields__:
        load_plugins(values.get("plugins", ()))
    return command(**values)


def _read_file(file: Path, fields: Mapping[str, Any]) -> dict[str, list[str]]:
    """Field → words of an options file."""
    import yaml

    try:
        text = file.read_text(encoding="utf-8")
        # BaseLoader: scalars stay what is written, such as 1e-3 or no
        loads = tomllib.loads if file.suffix == ".toml" else lambda t: yaml.load(t, yaml.BaseLoader)
        options = loads(text)
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise UserError(f"cannot read --config {file}: {first_line(error)}") from error
    if not isinstance(options, dict):
        raise UserError(f"--config {file} must be a table of options, such as `suite: paper`")
    names = {name.replace("_", "-"): name for name in fields}
    names |= {_flag(name).removeprefix("--"): name for name in fields}
    words = {}
    for option, value in options.items():
        key = option.replace("_", "-")
        if key not in names:
            raise UserError(f"--config {file}: no option {option!r}; {nearest(key, names)}")
        if isinstance(value, Mapping):
            value = [f"{key}={as_text(key, each)}" for key, each in value.items()]
        words[names[key]] = [
            as_text(key, each) for each in (value if isinstance(value, list) else [value])
        ]
    return words
