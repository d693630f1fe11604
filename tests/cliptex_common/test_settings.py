"""Settings are typed, checked and never guessed."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Annotated, Any, Literal

import pytest
from pydantic import Field

from cliptex_common.errors import UserError
from cliptex_common.settings import (
    as_pairs,
    as_text,
    one_line_errors,
    parse_pairs,
    read_value,
    settings_dataclass,
    with_changes,
)


@settings_dataclass
class Settings:
    max_iters: Annotated[int, Field(ge=1)] = 100
    lr: float = 0.1
    flip: bool = True
    size: Annotated[int, Field(ge=16)] | None = None
    precision: Literal["fp32", "bf16"] = "fp32"
    scale: tuple[float, float] = (0.5, 2.0)

    def __post_init__(self) -> None:
        if self.scale[0] > self.scale[1]:
            raise UserError("scale must be low,high")


def test_strings_take_the_type_of_their_field():
    text = {"max_iters": "7", "lr": "1e-3", "flip": "false", "size": "224", "precision": "bf16"}
    changed = with_changes(Settings(), {**text, "scale": "1,2"})
    assert changed == Settings(7, 1e-3, False, 224, "bf16", (1.0, 2.0))
    assert with_changes(changed, {"size": "none"}).size is None


def test_the_nearest_setting_is_so_by_its_name_before_its_meaning():
    @settings_dataclass
    class Sizes:
        """Sizes.

        Attributes:
            size: of the short side.
            resize: ``short-side``: ``size`` is that of the short side.
        """

        size: int = 1
        resize: str = "short-side"

    with pytest.raises(UserError, match=r"did you mean size.*: of the short side"):
        with_changes(Sizes(), {"siz": "2"})


@pytest.mark.parametrize(
    ("key", "value", "text"),
    [
        ("size", [224, 448], "224,448"),
        ("flip", True, "true"),
        ("lr", 1e-3, "0.001"),
        ("head.in_index", [3], "[3]"),
        ("head", {"in_index": [3]}, "{'in_index': [3]}"),
    ],
)
def test_values_from_python_and_files_as_text(key, value, text):
    assert as_text(key, value) == text


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"max_iter": "7"}, "did you mean max_iters"),
        ({"max_iters": "7.5"}, "max_iters=7.5: must be a valid integer"),
        ({"max_iters": "0"}, "max_iters=0: must be greater than or equal to 1"),
        ({"lr": "nan"}, "lr=nan: must be a finite number"),
        ({"precision": "fp8"}, "precision=fp8: must be 'fp32' or 'bf16'"),
        ({"scale": "2,1"}, "^scale must be low,high$"),
    ],
)
def test_wrong_values_are_one_line(changes, message):
    with pytest.raises(UserError, match=message):
        with_changes(Settings(), changes)


def test_settings_of_one_task_may_be_a_table():
    settings = {"lr": 0.1, "voc/linear": {"size": [224, 448]}, "voc/head.head": {"in_index": [0]}}
    pairs = {"lr": "0.1", "voc/linear.size": "224,448", "voc/head.head.in_index": "[0]"}
    assert as_pairs(settings) == pairs


def test_what_is_constructed_from_a_users_values_is_reported_in_one_line():
    with pytest.raises(UserError, match="max_iters=0: must be greater"), one_line_errors():
        Settings(max_iters=0)
    with pytest.raises(UserError, match="lambda_seg=much: must be a valid number"):
        read_value("lambda_seg", "much", float)


def test_pairs():
    assert parse_pairs(["a=1", "b = x=y", "a=1"]) == {"a": "1", "b": "x=y"}
    with pytest.raises(UserError, match="not of the form"):
        parse_pairs(["a"])
    with pytest.raises(UserError, match="given twice"):
        parse_pairs(["a=1", "a=2"])


@settings_dataclass
class WithTable:
    head: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    size: int = 1


def test_a_table_takes_entries_as_text_or_as_values():
    settings = WithTable({"type": "A", "norm": {"type": "BN", "eps": 0.1}})
    changes = {"norm.eps": "1e-3", "in_index": "0,1", "strides": "[4]", "bias": "none"}
    changes = {f"head.{name}": value for name, value in changes.items()}
    changed = with_changes(settings, {**changes, "head": {"type": "B", "name": "1"}, "size": "3"})
    assert changed.head == {
        "type": "B",
        "norm": {"type": "BN", "eps": 1e-3},
        "in_index": [0, 1],
        "strides": [4],
        "bias": None,
        "name": 1,
    }
    assert with_changes(settings, {"head": str(dict(changed.head))}).head == changed.head
    for wrong, message in (
        ({"size.x": "3"}, "no setting 'size.x'"),
        ({"head": "B"}, "such as head.type=B"),
    ):
        with pytest.raises(UserError, match=message):
            with_changes(settings, wrong)
