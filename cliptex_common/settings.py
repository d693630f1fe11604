"""Settings of recipes, probes and experts: frozen dataclasses whose fields declare type and range,
and changes to them as text (``--set key=value``)."""

from __future__ import annotations

import ast
import dataclasses
import difflib
import functools
import inspect
import re
import types
import typing
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, dataclass_transform

import pydantic.dataclasses
from pydantic import (
    AfterValidator,
    BeforeValidator,
    ConfigDict,
    Field,
    TypeAdapter,
    ValidationError,
)

from cliptex_common.errors import UserError, suggest
from cliptex_common.files import MAX_SEED, expand_user

T = TypeVar("T")
Probability = Annotated[float, Field(ge=0, le=1)]
Share = Annotated[float, Field(ge=0, lt=1)]
Fraction = Annotated[float, Field(gt=0, lt=1)]
FINITE = ConfigDict(allow_inf_nan=False)


def as_list(values: Any) -> Any:
    """A single text or path as a list of it."""
    return [values] if isinstance(values, str | Path) else values


def split_words(values: Any) -> list[str]:
    """``["a, b", "a"]`` or ``"a,b,a"`` → ``["a", "b"]``; commas in parentheses do not separate.
    Raises ``ValueError`` if values are given but no word."""
    values = as_list(values)
    if not isinstance(values, Iterable):
        raise ValueError("give names")
    words: list[str] = []
    for value in values:
        is_open = False  # a parenthesis of the word before
        for part in str(value).split(","):
            if is_open:
                words[-1] += f",{part}"
            else:
                words.append(part)
            is_open = words[-1].count("(") > words[-1].count(")")
    words = list(dict.fromkeys(filter(None, map(str.strip, words))))
    if values and not words:
        raise ValueError("separate names by commas")
    return words


def _check_label(label: str) -> str:
    with suppress(ValueError):
        if not label or split_words(label) == [label]:
            return label
    raise UserError(
        f"label {label!r}: commands split lists of names at commas; leave out commas that are not"
        " in parentheses, and spaces at its ends"
    )


def _check_folder(path: Path) -> Path:
    path = expand_user(path)
    if path.is_file():
        raise ValueError("give a folder, not a file")
    return path


Names = Annotated[Sequence[str], BeforeValidator(split_words)]
Label = Annotated[str, AfterValidator(_check_label)]  # a name that the user gives; may be empty
Seed = Annotated[int, Field(ge=0, le=MAX_SEED)]
SeedCount = Annotated[int, Field(ge=1, le=1000)]
Text = Annotated[str, Field(min_length=1)]
Folder = Annotated[Path, AfterValidator(_check_folder)]  # which need not exist yet


def matching(pattern: str, rule: str) -> AfterValidator:
    """Declares, in a field's annotation, that all of a text matches a regular expression; errors
    give the ``rule`` in words."""

    def check(text: str) -> str:
        if not re.fullmatch(pattern, text):
            raise ValueError(rule)
        return text

    return AfterValidator(check)


def _check_order(bounds: tuple[float, float]) -> tuple[float, float]:
    if bounds[0] > bounds[1]:
        raise ValueError("a range is low,high with 0 < low <= high <= 1")
    return bounds


# ``auto``, which a plan replaces: bf16 on accelerators that compute in it, else fp32
Precision = Literal["auto", "fp32", "bf16"]
PositiveShare = Annotated[float, Field(gt=0, le=1)]
ShareRange = Annotated[tuple[PositiveShare, PositiveShare], AfterValidator(_check_order)]


@dataclasses.dataclass(frozen=True)
class Axis:
    """Declares, in a field's annotation, that ``--set NAME=A,B`` may give it several values, each
    of which makes a variant of the task.

    Attributes:
        name: what ``--set`` calls it, if that is not the field's name. A field that is a tuple gets
            one item for each value.
    """

    name: str = ""


@dataclass_transform(frozen_default=True, field_specifiers=(dataclasses.field,))
def settings_dataclass(cls: type[T]) -> type[T]:
    """A frozen pydantic dataclass: values are converted to the type of their field and checked.

    Declare ranges in the annotation (``Annotated[int, Field(ge=1)]``, ``pydantic.PositiveInt``,
    ``Literal["fp32", "bf16"]``). Conditions between fields go into ``__post_init__``, which raises
    ``UserError``. Numbers must be finite; lists become tuples where the field is a tuple.

    Raises (on construction):
        pydantic.ValidationError: a value of the wrong type or out of range. Where it is a user's,
            ``one_line_errors`` reports it.
    """
    create: Any = pydantic.dataclasses.dataclass(frozen=True, config=FINITE)
    return create(cls)


@dataclass_transform(
    frozen_default=True, kw_only_default=True, field_specifiers=(dataclasses.field,)
)
def options_dataclass(cls: type[T]) -> type[T]:
    """A ``settings_dataclass`` with the options of a command: keyword-only, and the docstring below
    a field is its help. A field's alias is the option's name where the two differ."""
    config = ConfigDict(allow_inf_nan=False, use_attribute_docstrings=True, populate_by_name=True)
    create: Any = pydantic.dataclasses.dataclass(frozen=True, kw_only=True, config=config)
    return create(cls)


@contextmanager
def one_line_errors(name: str = "") -> Iterator[None]:
    """Report what pydantic refuses in the block in one line: name, value and what is allowed.

    Args:
        name: of the value, if it is not a field.

    Raises:
        UserError: a value is refused.
    """
    try:
        yield
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        # what a validator or ``__post_init__`` raised says itself what is wrong
        if isinstance(own := first.get("ctx", {}).get("error"), UserError):
            raise own from error
        reason = first["msg"].removeprefix("Value error, ").partition(", unable to")[0]
        name = name or str(next(iter(first["loc"]), ""))
        reason = reason.replace("Input should be", "must be")
        raise UserError(f"{name}={first['input']}: {reason}") from error


def check_arguments(function: T) -> T:
    """Report arguments of a public function that are not of its annotated types in one line, but
    for types that its module imports for type checkers alone.

    Raises (when it is called):
        UserError: an argument is of another type.
    """
    own: Any = function

    @functools.wraps(own)
    def call(*args, **options):
        for name, value in inspect.getcallargs(own, *args, **options).items():
            with suppress(KeyError, NameError):
                read_value(name, value, eval(own.__annotations__[name], own.__globals__))
        return own(*args, **options)

    return call  # type: ignore[return-value]


def parse_pairs(pairs: Iterable[str], option: str = "--set") -> dict[str, str]:
    """``["a=1", "b=x"]`` → ``{"a": "1", "b": "x"}``; ``option`` is named in errors.

    Raises:
        UserError: a pair has no ``=``, or a key comes twice with different values.
    """
    parsed: dict[str, str] = {}
    for pair in as_list(pairs):
        key, equals, value = pair.partition("=")
        key, value = key.strip(), value.strip()
        if not equals or not key:
            raise UserError(f"{option} {pair!r} is not of the form key=value")
        if parsed.get(key, value) != value:
            raise UserError(f"{option} {key} is given twice: {parsed[key]} and {value}; keep one")
        parsed[key] = value
    return parsed


def as_text(key: str, value: Any) -> str:
    """A setting's value as ``--set KEY=`` takes it. Items of a list are separated by commas; a list
    in a table (``head.in_index``) is written as a Python literal."""
    in_table = "." in key
    if isinstance(value, list | tuple) and not in_table:
        return ",".join(as_text(key, item) for item in value)
    return str(value).lower() if isinstance(value, bool) else str(value)


def split_task(key: str) -> tuple[str, str]:
    """The task that a key is for and the setting, of ``DATASET/PROBE.SETTING`` or ``SETTING``:
    ``voc/head.head.type`` → (``voc/head``, ``head.type``), ``lr`` → ('', ``lr``)."""
    dataset, slash, rest = key.partition("/")
    probe, _, setting = rest.partition(".")
    return (f"{dataset}/{probe}", setting) if slash else ("", key)


def as_pairs(settings: Mapping[str, Any]) -> dict[str, str]:
    """Settings as ``--set`` takes them; those of one task may be a table: ``{"voc/linear": {"lr":
    0.1}}``."""
    pairs: dict[str, str] = {}
    for key, value in settings.items():
        task, setting = split_task(key)
        if task and isinstance(value, Mapping):
            pairs |= as_pairs({f"{key}.{name}": each for name, each in value.items()})
        else:
            pairs[key] = as_text(setting, value)
    return pairs


def field_names(settings_type: type) -> set[str]:
    """Names of the settings of a dataclass."""
    return {field.name for field in dataclasses.fields(settings_type)}


@functools.cache
def axes_of(settings_type: type) -> dict[str, str]:
    """Axis → the field that it sets, of a settings dataclass."""
    hints = typing.get_type_hints(settings_type, include_extras=True)
    return {
        part.name or name: name
        for name, hint in hints.items()
        for part in getattr(hint, "__metadata__", ())
        if isinstance(part, Axis)
    }


def with_changes(settings: T, changes: Mapping[str, Any]) -> T:
    """A copy of a settings dataclass with ``changes``; text is read as the type of its field.

    A field that is a table takes entries: ``{"head.norm_cfg.type": "BN"}`` sets one, ``{"head":
    {...}}`` several. Text in it is read as a Python literal where it is one.

    Raises:
        UserError: an unknown key (suggests the nearest), or a value that the field does not allow.
    """
    hints = typing.get_type_hints(type(settings), include_extras=True)
    values: dict[str, Any] = {}
    for key, value in changes.items():
        name, *path = key.split(".")
        is_table = name in hints and Mapping in value_types(hints[name])
        if name not in field_names(type(settings)) or (path and not is_table):
            kind = type(settings)
            raise UserError(f"no setting {key!r}; {suggest_setting(key, field_names(kind), kind)}")
        if is_table:  # earlier changes of the same table count
            value = _merged(values.get(name, getattr(settings, name)), path, _plain(value))
            if not isinstance(value, Mapping):
                raise UserError(f"{key}={value}: set its entries, such as {key}.type={value}")
        values[name] = read_value(key, value, hints[name])
    with one_line_errors():
        return dataclasses.replace(settings, **values)  # type: ignore[type-var]


@functools.cache
def meanings(settings_type: type) -> dict[str, str]:
    """Setting → what it means, from the ``Attributes`` of a settings dataclass and its bases."""
    texts: dict[str, str] = {}
    for base in reversed(settings_type.__mro__):
        attributes = (inspect.getdoc(base) or "").partition("Attributes:\n")[2]
        for names, text in re.findall(r"^ {4}(\w[\w, ]*): (.*(?:\n {8}.*)*)", attributes, re.M):
            texts |= dict.fromkeys(names.split(", "), " ".join(text.split()).replace("``", "`"))
    return texts


def suggest_setting(key: str, choices: Collection[str], *settings_types: type) -> str:
    """``suggest``, with the meaning of the nearest setting: by its name, where it is almost that,
    else by a word of its meaning."""
    texts = {name: text for each in settings_types for name, text in meanings(each).items()}
    words = re.compile(rf"\b{re.escape(key.replace('_', ' '))}\b")
    is_near = bool(difflib.get_close_matches(key, choices, cutoff=0.8))
    named = [name for name, text in texts.items() if name in choices and words.search(text)]
    named = named * (not is_near)
    hint = f"did you mean {named[0]}?" if named else suggest(key, choices)
    nearest = hint.removeprefix("did you mean ").rstrip("?").partition(", ")[0]
    return f"{hint} {nearest}: {texts[nearest]}" if nearest in texts else hint


SIGNS = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<"}


def describe_type(hint: Any) -> str:
    """The values of a type hint in words: ``integer > 0``, ``adamw or sgd``."""

    def describe(schema: Mapping[str, Any]) -> str:
        if "anyOf" in schema:
            return " or ".join(map(describe, schema["anyOf"]))
        if schema.get("maxItems") == 0:
            return "none"
        if "enum" in schema:
            return " or ".join(map(str, schema["enum"]))
        kind = schema.get("type", "any").replace("null", "none")
        if kind == "array":
            items = schema.get("prefixItems") or [schema.get("items", {})]
            return f"list of {describe(items[0])}"
        return " ".join(
            [kind, *(f"{SIGNS[key]} {schema[key]:g}" for key in SIGNS if key in schema)]
        )

    return describe(TypeAdapter(hint).json_schema())


def setting_of(key: str) -> str:
    """The setting that a key changes: ``head`` of ``head.norm_cfg.type``."""
    return key.partition(".")[0]


def _merged(table: Any, path: Sequence[str], value: Any) -> Any:
    """``table`` with ``value`` at ``path``; entries of a table are added to those that exist."""
    entries = table if isinstance(table, Mapping) else {}
    if path:
        return {**entries, path[0]: _merged(entries.get(path[0]), path[1:], value)}
    return {**entries, **value} if isinstance(value, Mapping) else value


def _plain(value: Any) -> Any:
    """An entry of a table as JSON has it; text that is a literal is read as one."""
    if isinstance(value, str):
        words = {"none": None, "true": True, "false": False}
        try:
            value = ast.literal_eval(value) if value.lower() not in words else words[value.lower()]
        except (ValueError, SyntaxError, RecursionError, MemoryError):  # the last: nested deeply
            return value
    if isinstance(value, Mapping):
        return {str(name): _plain(entry) for name, entry in value.items()}
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value


def read_value(key: str, value: Any, hint: Any) -> Any:
    """``value`` converted to type ``hint`` by pydantic. In text, commas separate the items of a
    tuple, and ``none`` is None where that is allowed, or a tuple without items.

    Raises:
        UserError: the value does not fit the type.
    """
    if isinstance(value, str):
        types_ = value_types(hint)
        if type(None) in types_ and value.lower() == "none":
            value = None
        elif tuple in types_:
            items = value.strip("()[] ").split(",")
            value = [item.strip() for item in items if item.strip() and value.lower() != "none"]
    with one_line_errors(key):
        return TypeAdapter(hint, config=FINITE).validate_python(value)


def value_types(hint: Any) -> set[Any]:
    """The classes that values of a type hint can have, through Annotated and unions."""
    origin = typing.get_origin(hint)
    if origin is Annotated:
        return value_types(typing.get_args(hint)[0])
    if origin in (typing.Union, types.UnionType):
        return set().union(*map(value_types, typing.get_args(hint)))
    return {origin or hint}
