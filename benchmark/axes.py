"""Variants of a task: one for each value of a setting that is declared an axis
(``--set layers=3,6,9,12``)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from itertools import product
from typing import Any

from benchmark.records import PlannedTask
from cliptex_common.errors import UserError
from cliptex_common.settings import axes_of, field_names, read_value, with_changes
from probes.base import Probe

MOST_VARIANTS = 100  # of a task
# their variants are named by the value alone (``voc/linear:0.1``), and one value makes a variant
SAMPLES = ("train_share", "shots")


def sample_axis(probe: Probe) -> str:
    """``shots`` or ``train_share``, whichever ``:VALUE`` sets; '' if the probe is not trained."""
    if "shots" in field_names(probe.settings_type):
        return "shots"
    return "train_share" if "train" in probe.splits else ""


def axes(probe: Probe) -> dict[str, str]:
    """Axis → the setting that it changes."""
    sample = {name: name for name in [sample_axis(probe)] if name}
    return {**sample, **axes_of(probe.settings_type)}


def sets_axis(own_axes: Mapping[str, str], key: str, text: str) -> bool:
    """Whether ``--set KEY=TEXT`` is for a probe with these axes. A setting of another name (the
    ``features`` of ``layers``) has its own words beside the numbers and shares of the axis."""
    field = own_axes.get(key)
    return field is not None and (field == key or is_numeric(text))


def is_numeric(text: str) -> bool:
    """Whether a text has no words, only numbers and shares."""
    return set(text) <= set("0123456789.%, ")


def split_variant(name: str, probe: Probe) -> dict[str, str]:
    """The axes that a task's name fixes: ``voc/linear:0.1:size=224`` → ``{"train_share": "0.1",
    "size": "224"}``.

    Raises:
        UserError: the probe has no such axis.
    """
    task, *parts = name.split(":")
    fixed: dict[str, str] = {}
    for part in filter(None, parts):
        axis, equals, value = part.partition("=")
        if not equals:
            axis, value = sample_axis(probe), part
        if not axis:
            raise UserError(
                f"{name}: {task} trains on nothing and has no variants; leave :{part} out"
            )
        if axis not in axes(probe):
            raise UserError(f"{name}: {task} has no axis {axis!r}, only {', '.join(axes(probe))}")
        fixed[axis] = value
    return fixed


def read_values(axis: str, text: str) -> list[str]:
    """The values of an axis as ``--set`` has them, each once.

    Raises:
        UserError: a comma without two different values, or more than ``MOST_VARIANTS``.
    """
    values = list(dict.fromkeys(part.strip() for part in text.split(",")))
    if "," in text and (len(values) < 2 or "" in values):
        raise UserError(
            f"--set {axis}={text}: an axis has two or more different values, separated by single"
            " commas; for one value leave the comma out"
        )
    if len(values) > MOST_VARIANTS:
        raise UserError(
            f"--set {axis}: {len(values)} values; a task has at most {MOST_VARIANTS} variants"
        )
    return values


def variants(task: PlannedTask, ranges: Mapping[str, list[str]]) -> list[PlannedTask]:
    """The task with every combination of values.

    Args:
        ranges: axis → its values.
    Raises:
        UserError: a value that the setting does not allow, or more than ``MOST_VARIANTS`` tasks.
    """
    combinations = list(product(*ranges.values()))
    if len(combinations) > MOST_VARIANTS:
        raise UserError(
            f"{task.name}: the values of {', '.join(ranges)} make {len(combinations)} variants; a"
            f" task has at most {MOST_VARIANTS}"
        )
    result = []
    for values in combinations:
        variant = task
        for axis, value in zip(ranges, values, strict=True):
            variant = _with_value(variant, axis, value)
        result.append(variant)
    return result


def _with_value(task: PlannedTask, axis: str, value: str) -> PlannedTask:
    """The task with one value of an axis. The share or the shots that it has already change
    nothing, not even its name."""
    if axis == "train_share":
        share = read_value(axis, value, float)
        if not 0 < share <= 1:
            raise UserError(f"train_share={value}: must be above 0 and at most 1")
        return task if share == 1 else replace(task, name=f"{task.name}:{share}", train_share=share)
    field = axes(task.probe)[axis]
    settings = with_changes(task.settings, {field: value})
    if axis == "shots":
        if settings == task.settings:
            return task
        return replace(task, name=f"{task.name}:{settings.shots}", settings=settings)
    name = f"{task.name}:{axis}={_text(getattr(settings, field))}"
    return replace(task, name=name, settings=settings)


def _text(value: Any) -> str:
    (value,) = value if isinstance(value, tuple) else (value,)
    return str(value)
