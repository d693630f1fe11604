"""Experts by name: one file and one registration each; a third party's come through an entry point.

[options.entry_points]                     # in the other package's setup.cfg
cliptex_benchmark.experts =
    my-expert = my_package.my_module:MyExpert
"""

from __future__ import annotations

from importlib.metadata import entry_points
from typing import TypeVar

import torch

from backbones.cliptex.experts.base import TASKS, Expert
from backbones.errors import UserError, nearest

GROUP = "cliptex_benchmark.experts"
EXPERTS: dict[str, type[Expert]] = {}
_Class = TypeVar("_Class", bound=type[Expert])


def register_expert(expert: _Class) -> _Class:
    """Add an expert's class under its name (a decorator). Raises ``ValueError`` when the name is taken."""
    if EXPERTS.get(expert.name, expert) is not expert:
        raise ValueError(f"there is an expert {expert.name!r} already")
    EXPERTS[expert.name] = expert
    return expert


def find_expert(name: str) -> type[Expert]:
    """The class of an expert.

    Raises:
        UserError: there is none of that name (names the nearest), or a plug-in cannot be imported.
    """
    if name in EXPERTS:
        return EXPERTS[name]
    points = {point.name: point for point in entry_points(group=GROUP)}
    if name not in points:
        raise UserError(f"no expert {name!r}; {nearest(name, [*EXPERTS, *points])}")
    try:
        return register_expert(points[name].load())
    except Exception as error:  # whatever a foreign module does wrong
        raise UserError(f"expert {name!r} of {points[name].value} cannot be loaded: {error}") from error


def known_experts() -> dict[str, str]:
    """Name → one line about it, plug-ins included (not imported)."""
    plugins = {point.name: f"plug-in {point.value}" for point in entry_points(group=GROUP)}
    return {**plugins, **{name: expert.about for name, expert in EXPERTS.items()}}


def load_experts(specs: list[str], device: torch.device | str = "cpu") -> list[Expert]:
    """Experts from ``NAME=WHERE`` (a folder, a checkpoint, a hub name; see each expert), ready to label.

    Raises:
        UserError: an unknown name, no WHERE, two experts for one task, or whatever an expert finds wrong.
    """
    experts: list[Expert] = []
    for spec in specs:
        name, _, where = spec.partition("=")
        kind = find_expert(name.strip())
        if not where.strip():
            raise UserError(f"expert {name!r} needs its weights, as in {name}=FOLDER; make them with: experts train")
        expert = kind.load(where.strip(), device)
        if twin := next((other for other in experts if other.task == expert.task), None):
            raise UserError(f"experts {twin.name!r} and {name!r} both label {expert.task}; choose one of them")
        experts.append(expert)
    if not experts:
        raise UserError(
            f"no experts given; --experts takes NAME=WHERE, with names such as {', '.join(sorted(EXPERTS))}"
        )
    return sorted(experts, key=lambda expert: TASKS.index(expert.task))
