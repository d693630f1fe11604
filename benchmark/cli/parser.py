"""What all commands' parsers do alike: no abbreviations, the nearest word, examples, options from a
file, old spellings."""

from __future__ import annotations

import argparse
import sys
import tomllib
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from difflib import get_close_matches
from itertools import zip_longest
from pathlib import Path
from typing import Any, NoReturn

from common.errors import UserError, first_line, nearest
from common.files import read_text

# what README had before, and what it is now; gone with the next release
OLD_COMMANDS = {("label",): ("labels", "predict"), ("experts", "list"): ("list", "experts")}
OLD_OPTIONS = {
    ("run", "--alone"): "--only",
    ("experts", "--data"): "--data-root",
    ("labels", "-n"): "--limit",
}


class Parser(argparse.ArgumentParser):
    """Says in one line what is wrong, with the nearest word that it knows, and takes options from
    ``--config FILE``."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(
            allow_abbrev=False, formatter_class=argparse.RawDescriptionHelpFormatter, **settings
        )

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}; see {self.prog} --help")

    def _print_message(self, message: str, file: Any = None) -> None:
        (file or sys.stderr).write(message)  # argparse's own is silent when it cannot

    def parse_known_args(self, args=None, namespace=None):
        words = list(sys.argv[1:] if args is None else args)
        for word in words:  # before argparse looks for what is required
            if word == "--" or (self._subparsers and not word.startswith("-")):
                break  # the rest is a command's
            flag = word.partition("=")[0]
            if flag.startswith("--") and flag not in self._option_string_actions:
                near = get_close_matches(flag, self._option_string_actions, cutoff=0.65)
                self.error(f"no option {flag}" + f"; did you mean {', '.join(near)}?" * bool(near))
        if "--config" in self._option_string_actions:
            words = [*_from_files(self, words), *words]
        found, unknown = super().parse_known_args(words, namespace)
        if unknown:
            self.error(f"unexpected {' '.join(unknown)[:80]!r}")
        return found, unknown

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        if action.choices is None or value in action.choices:
            return
        hint = nearest(str(value), action.choices)
        if isinstance(action, argparse._SubParsersAction):
            near = get_close_matches(
                str(value), action.choices, n=1, cutoff=0.5
            )  # its help is the one to read
            raise UserError(
                f"no command {value!r}; {hint}; see {self.prog} {' '.join([*near, '--help'])}"
            )
        raise argparse.ArgumentError(action, f"{value!r} is none; {hint}")


def add_commands(parser: argparse.ArgumentParser, dest: str) -> Any:
    """Where a parser's commands are added."""
    return parser.add_subparsers(dest=dest, required=True, metavar="command", parser_class=Parser)


def add_command(commands: Any, name: str, about: str, *examples: str) -> argparse.ArgumentParser:
    """The parser of one more command, whose ``--help`` ends with ``examples`` (see
    ``with_examples``)."""
    return with_examples(commands.add_parser(name, help=about, description=about), *examples)


def with_examples(parser: argparse.ArgumentParser, *examples: str) -> argparse.ArgumentParser:
    """End a parser's ``--help`` with command lines, given without their beginning
    (``python -m benchmark COMMAND``)."""
    parser.epilog = "\n".join(
        ["examples:", *(f"  {parser.prog} {each}".rstrip() for each in examples)]
    )
    return parser


def renewed(words: Sequence[str]) -> list[str]:
    """``words`` with old spellings replaced; a line on stderr for each says the new one."""
    new = list(words)
    for old, now in OLD_COMMANDS.items():
        if tuple(new[: len(old)]) == old:
            new[: len(old)] = now
            _note(" ".join(old), " ".join(now))
    for place, word in enumerate(new):
        flag, equals, value = word.partition("=")
        if (option := OLD_OPTIONS.get((new[0], flag))) is not None:
            new[place] = f"{option}{equals}{value}"
            _note(f"{new[0]} {flag}", f"{new[0]} {option}")
    return new


def _note(old: str, now: str) -> None:
    sys.stderr.write(f"note: `{old}` is `{now}` now; the old spelling goes with the next release\n")


def _from_files(parser: argparse.ArgumentParser, words: Sequence[str]) -> Iterator[str]:
    """The words that ``--config`` files among ``words`` stand for, less what is typed there:
    options, or of KEY=VALUE options their keys."""
    typed: dict[str, list[str]] = defaultdict(list)
    for word, after in zip_longest(words, words[1:], fillvalue=""):
        flag, equals, value = word.partition("=")
        typed[flag].append(value if equals else after)
    for file in map(Path, typed.get("--config", ())):
        for key, value in read_options(file).items():
            flag = f"--{key.replace('_', '-')}"
            known = {each for each in parser._option_string_actions if each.startswith("--")} - {
                "--help",
                "--config",
            }
            if flag not in known:
                hint = nearest(flag, known).replace("--", "")
                raise UserError(f"--config {file}: `{parser.prog}` has no option {key!r}; {hint}")
            action = parser._option_string_actions[flag]
            is_pairs = "=" in str(action.metavar)
            for text in _texts(file, key, value, action):
                if flag not in typed or (
                    is_pairs and text.partition("=")[0] not in _keys(typed[flag])
                ):
                    yield flag if action.nargs == 0 else f"{flag}={text}"


def _keys(pairs: Sequence[str]) -> list[str]:
    return [pair.partition("=")[0] for pair in pairs]


def _texts(file: Path, key: str, value: Any, action: argparse.Action) -> list[str]:
    """The values of one option of a file, as they would be typed."""
    if action.nargs == 0:
        if _plain(value) not in ("true", "false"):
            raise UserError(f"--config {file}: {key} is yes or no; say true or false")
        return [""] if _plain(value) == "true" else []
    if isinstance(value, Mapping) and "=" in str(action.metavar):
        value = [f"{name}={_joined(file, key, each)}" for name, each in value.items()]
    repeated = isinstance(value, list) and isinstance(action.default, list)
    return [_joined(file, key, each) for each in (value if repeated else [value])]


def _joined(file: Path, key: str, value: Any) -> str:
    """A word, or several separated by commas."""
    parts = [_plain(each) for each in (value if isinstance(value, list) else [value])]
    if not parts or not all(parts):
        raise UserError(
            f"--config {file}: {key} must be a word, a number, or a list or table of such"
        )
    return ",".join(parts)


def _plain(value: Any) -> str:
    """A scalar as it is typed; '' for anything else."""
    if isinstance(value, bool):
        return str(value).lower()
    return "" if isinstance(value, Mapping | list) or value is None else str(value)


def read_options(file: Path) -> dict[str, Any]:
    """Option → value of a file. Raises ``UserError`` for one that cannot be read, or says no table
    of options."""
    try:
        text = read_text(file)
        if file.suffix == ".toml":
            found: Any = tomllib.loads(text)
        else:
            import yaml

            found = yaml.load(text, yaml.BaseLoader)  # scalars stay what is written: 1e-3, no, 0x10
    except OSError as error:
        raise UserError(f"cannot read --config {file}: {error.strerror or error}") from error
    except Exception as error:  # each parser has its own
        raise UserError(
            f"--config {file} is no {'TOML' if file.suffix == '.toml' else 'YAML'}:"
            f" {first_line(error)}"
        ) from error
    if not isinstance(found, dict):
        raise UserError(f"--config {file} must be a table of options, such as `suite: paper`")
    return {str(key): value for key, value in found.items()}
