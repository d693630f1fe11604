"""``--set key=value``: typed changes to a frozen dataclass of settings."""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Iterable, Mapping
from typing import Any, TypeVar

from common.errors import UserError, nearest

Settings = TypeVar("Settings")


def parse_pairs(pairs: Iterable[str]) -> dict[str, str]:
    """``["a=1", "b=x"]`` → ``{"a": "1", "b": "x"}``.

    Raises:
        UserError: a pair has no ``=``, or a key comes twice with different values.
    """
    parsed: dict[str, str] = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        key, value = key.strip(), value.strip()
        if not equals or not key:
            raise UserError(f"--set {pair!r} is not of the form key=value")
        if parsed.get(key, value) != value:
            raise UserError(f"--set {key} is given twice: {parsed[key]} and {value}; keep one")
        parsed[key] = value
    return parsed


def fields_of(settings_type: type) -> set[str]:
    """Names of the settings of a dataclass."""
    return {field.name for field in dataclasses.fields(settings_type)}


def with_changes(settings: Settings, changes: Mapping[str, Any]) -> Settings:
    """A copy of a settings dataclass with ``changes``; strings are read as the field's own type.

    Raises:
        UserError: an unknown key (names the nearest), or a value that does not fit its type.
    """
    hints = typing.get_type_hints(type(settings))
    values = {}
    for key, value in changes.items():
        if key not in fields_of(type(settings)):
            raise UserError(f"no setting {key!r}; {nearest(key, fields_of(type(settings)))}")
        values[key] = read_value(key, value, hints[key]) if isinstance(value, str) else value
    try:
        return dataclasses.replace(settings, **values)  # type: ignore[type-var]
    except UserError:
        raise
    except (TypeError, ValueError) as error:
        raise UserError(f"settings {values}: {error}") from error


def read_value(key: str, text: str, hint: Any) -> Any:
    """``text`` as a value of type ``hint``: int, float, bool, str, Literal, tuples of them (comma
    separated), or optional."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        if text.lower() == "none" and type(None) in arguments:
            return None
        return read_value(key, text, next(a for a in arguments if a is not type(None)))
    if origin is typing.Literal:
        choices = {str(choice): choice for choice in arguments}
        if text not in choices:
            raise UserError(f"--set {key}={text}: must be one of {', '.join(choices)}")
        return choices[text]
    if origin is tuple or hint is tuple:
        items = [item for item in text.strip("()[] ").split(",") if item.strip()]
        inner = arguments or (str, ...)
        if len(inner) == 2 and inner[1] is ...:
            return tuple(read_value(key, item.strip(), inner[0]) for item in items)
        if len(items) != len(inner):
            raise UserError(f"--set {key}={text}: needs {len(inner)} values separated by commas")
        return tuple(
            read_value(key, item.strip(), kind) for item, kind in zip(items, inner, strict=True)
        )
    try:
        if hint is bool:
            return {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}[
                text.lower()
            ]
        if hint in (int, float):
            number = hint(text)
            if number != number or abs(number) == float("inf"):
                raise ValueError
            return number
    except (ValueError, KeyError):
        names = {bool: "true or false", int: "a whole number", float: "a finite number"}
        raise UserError(f"--set {key}={text}: must be {names[hint]}") from None
    return text
