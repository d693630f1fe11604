"""Commands from options dataclasses.

A command is an options dataclass with a method ``main`` that returns the exit code; its docstring
is its help, and each field is an option, called by its alias if it has one.
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

from pydantic import BeforeValidator

from cliptex_common.errors import UserError, first_line, suggest
from cliptex_common.files import parse_file, write_text
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

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}; see {self.prog} --help")

    def parse_known_args(self, args=None, namespace=None):
        namespace, unknown = super().parse_known_args(args, namespace)
        if unknown:
            flag = unknown[0].partition("=")[0]
            hint = f"; {suggest(flag, self._option_string_actions)}" if flag[0] == "-" else ""
            self.error(f"unknown argument {flag}{hint}")
        return namespace, unknown


def add_command(parser: argparse.ArgumentParser, command: Any) -> None:
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
