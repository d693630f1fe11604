"""``--set key=value`` is typed, checked, and never guesses."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.errors import UserError
from common.overrides import parse_pairs, with_changes


@dataclass(frozen=True)
class Settings:
    max_iters: int = 100
    lr: float = 0.1
    flip: bool = True
    size: int | None = None
    precision: Literal["fp32", "bf16"] = "fp32"
    lrs: tuple[float, ...] = (0.1,)
    scale: tuple[float, float] = (0.5, 2.0)

    def __post_init__(self) -> None:
        if self.max_iters < 1:
            raise ValueError("max_iters must be at least 1")


def test_strings_take_the_type_of_their_field():
    changed = with_changes(
        Settings(),
        {
            "max_iters": "7",
            "lr": "1e-3",
            "flip": "false",
            "size": "224",
            "precision": "bf16",
            "lrs": "1,0.5",
            "scale": "1,2",
        },
    )
    assert changed == Settings(7, 1e-3, False, 224, "bf16", (1.0, 0.5), (1.0, 2.0))
    assert with_changes(changed, {"size": "none"}).size is None


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_every_finite_float_survives(value):
    assert with_changes(Settings(), {"lr": repr(value)}).lr == value


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"max_iter": "7"}, "did you mean max_iters"),
        ({"max_iters": "7.5"}, "a whole number"),
        ({"max_iters": "0"}, "at least 1"),
        ({"lr": "nan"}, "a finite number"),
        ({"flip": "maybe"}, "true or false"),
        ({"precision": "fp8"}, "one of fp32, bf16"),
        ({"scale": "1"}, "needs 2 values"),
    ],
)
def test_wrong_values_are_said(changes, message):
    with pytest.raises(UserError, match=message):
        with_changes(Settings(), changes)


def test_pairs():
    assert parse_pairs(["a=1", "b = x=y", "a=1"]) == {"a": "1", "b": "x=y"}
    with pytest.raises(UserError, match="not of the form"):
        parse_pairs(["a"])
    with pytest.raises(UserError, match="given twice"):
        parse_pairs(["a=1", "a=2"])
