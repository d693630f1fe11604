"""What all parsers have in common: one-line errors, examples, and options from a file."""

from __future__ import annotations

import argparse
import sys
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

from common.errors import UserError, first_line, nearest


class Parser(argparse.ArgumentParser):
    """Reports errors in one line with the nearest name, and reads options from ``--config``."""

    def __init__(self, **settings: Any) -> None:
        formatter = argparse.RawDescriptionHelpFormatter
        super().__init__(allow_abbrev=False, formatter_class=formatter, **settings)

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}; see {self.prog} --help")

    def parse_known_args(self, args=None, namespace=None):
        words = list(sys.argv[1:] if args is None else args)
        if "--config" in self._option_string_actions:
            words = [*_config_words(self, words), *words]
        namespace, unknown = super().parse_known_args(words, namespace)
        if unknown:
            flag = unknown[0].partition("=")[0]
            hint = f"; {nearest(flag, self._option_string_actions)}" if flag[0] == "-" else ""
            self.error(f"unknown argument {flag}{hint}")
        return namespace, unknown

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        if action.choices is not None and value not in action.choices:
            hint = nearest(str(value), action.choices)
            raise argparse.ArgumentError(action, f"unknown {value!r}; {hint}")


def add_commands(parser: argparse.ArgumentParser, dest: str) -> Any:
    """The group of a parser's commands; the name of the chosen one is stored in ``dest``."""
    return parser.add_subparsers(dest=dest, required=True, metavar="command", parser_class=Parser)


def add_command(commands: Any, name: str, about: str, *examples: str) -> argparse.ArgumentParser:
    """Add a command with ``examples`` (see ``with_examples``)."""
    return with_examples(commands.add_parser(name, help=about, description=about), *examples)


def with_examples(parser: argparse.ArgumentParser, *examples: str) -> argparse.ArgumentParser:
    """End the help with command lines, given without ``python -m benchmark COMMAND``."""
    lines = [f"  {parser.prog} {example}".rstrip() for example in examples]
    parser.epilog = "\n".join(["examples:", *lines])
    return parser


def _config_words(parser: argparse.ArgumentParser, words: Sequence[str]) -> Iterator[str]:
    """The options of the ``--config`` file among ``words``, as words, unless typed there.

    A typed KEY=VALUE overrides its key only.
    """
    finder = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    finder.add_argument("--config", type=Path)
    file = finder.parse_known_args(words)[0].config
    actions = {
        flag.lstrip("-"): action
        for flag, action in parser._option_string_actions.items()
        if flag not in ("-h", "--help", "--config")
    }
    typed = {word.partition("=")[0] for word in words}
    typed_keys = typed | {word.partition("=")[2].partition("=")[0] for word in words}
    for name, value in read_options(file).items() if file else ():
        key = name.replace("_", "-")
        if key not in actions:
            raise UserError(f"--config {file}: no option {name!r}; {nearest(key, actions)}")
        is_pairs = "=" in str(actions[key].metavar)
        for text in _texts(value, actions[key]):
            pair_key = text.partition("=")[0]
            if pair_key not in typed_keys if is_pairs else f"--{key}" not in typed:
                yield f"--{key}" if actions[key].nargs == 0 else f"--{key}={text}"


def _texts(value: Any, action: argparse.Action) -> list[str]:
    """The value of an option in a file as its values on the command line."""
    if action.nargs == 0:
        return [""] if _text(value) == "true" else []
    if isinstance(value, Mapping):
        value = [f"{key}={_text(each)}" for key, each in value.items()]
    if isinstance(value, list) and isinstance(action.default, list):
        return [_text(each) for each in value]
    return [_text(value)]


def _text(value: Any) -> str:
    if isinstance(value, list):
        return ",".join(map(_text, value))
    return str(value).lower() if isinstance(value, bool) else str(value)


def read_options(file: Path) -> dict[str, Any]:
    """Option → value. Raises ``UserError`` for a file that cannot be read or is not a table."""
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
    return options
