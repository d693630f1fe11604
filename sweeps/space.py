"""The space of a sweep: settings of a recipe, each with values or a range."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from pydantic import PositiveInt

from backbones.cliptex.recipes import LAMBDA_PREFIX, Recipe
from backbones.cliptex.tasks import PAPER
from cliptex_common.errors import UserError
from cliptex_common.settings import Seed, options_dataclass

LAMBDAS = tuple(LAMBDA_PREFIX + loss for loss in ("clip", *PAPER))
Value = float | int | bool | str
Distribution = CategoricalDistribution | FloatDistribution | IntDistribution


@options_dataclass
class SearchOptions:
    """What is searched, and how."""

    search: Literal["linear", "grid", "tpe"] = "linear"
    """linear: one setting at a time, the others at their base, as in the paper; grid: every
    combination; tpe: Optuna's sampler"""
    vary: Mapping[str, str] = field(default_factory=dict)
    """a setting of the recipe and its values, as lambda_seg=0.1,1,10 or 'experts=seg|seg,depth',
    or for tpe a range, as lr=1e-5:1e-3 (repeatable; default: the λs of clip, seg, depth and
    normal, as far as the recipe has them, with the values 0.1,1,10, for tpe the range 0.01:100)"""
    trials: PositiveInt = 40
    """trials of tpe; may be raised later"""
    seed: Seed = 0
    """of sampler, trainings and probes"""


@dataclass(frozen=True)
class Space:
    """The settings that trials differ in.

    Attributes:
        search, trials, seed: see ``SearchOptions``.
        base: setting → its value in the base recipe.
        distributions: setting → its values or range.
    """

    search: str
    trials: int
    seed: int
    base: Mapping[str, Value]
    distributions: Mapping[str, Distribution]

    def combinations(self) -> list[dict[str, Value]]:
        """The params of every trial, those of the base recipe first; empty for tpe, which samples
        them."""
        if self.search == "tpe":
            return []
        values: dict[str, tuple[Any, ...]] = {
            name: each.choices  # type: ignore[union-attr]
            for name, each in self.distributions.items()
        }
        if self.search == "grid":
            return [
                dict(zip(values, each, strict=True)) for each in itertools.product(*values.values())
            ]
        params = [{**self.base, name: value} for name in values for value in values[name]]
        return [dict(self.base), *(each for each in params if each != self.base)]

    @property
    def total(self) -> int:
        """Number of trials."""
        return len(self.combinations()) or self.trials

    def name(self, params: Mapping[str, Value]) -> str:
        """Params as ``λseg 0.1 lr 0.001``: what differs from the base recipe, ``base`` for none."""
        changes = [
            f"{name.replace(LAMBDA_PREFIX, 'λ')}"
            f" {f'{value:.6g}' if isinstance(value, float) else value}"
            for name, value in params.items()
            if value != self.base[name]
        ]
        return " ".join(changes) or "base"


def make_space(options: SearchOptions, recipe: Recipe) -> Space:
    """The space of a user's options around the base recipe.

    Raises:
        UserError: an unknown setting, or a value or range that is not allowed.
    """
    default = "0.01:100" if options.search == "tpe" else "0.1,1,10"
    used = {LAMBDA_PREFIX + loss for loss in ("clip", *recipe.experts)}
    lambdas = [name for name in LAMBDAS if name in used]
    base, distributions = {}, {}
    for name, text in (options.vary or dict.fromkeys(lambdas, default)).items():
        if name in ("name", "seed"):
            raise UserError(f"--vary {name}: give --study for names, --confirm for seeds")
        base[name] = _read(recipe, name, recipe.settings().get(name, 1.0))
        if ":" in text and options.search == "tpe":
            distributions[name] = _range(recipe, name, text)
            continue
        # values with commas of their own, such as experts, are separated by |
        is_list = "|" in text or isinstance(recipe.settings().get(name), tuple)
        values = [_read(recipe, name, part) for part in text.split("|" if is_list else ",")]
        if options.search == "linear":
            values.append(base[name])
        distributions[name] = CategoricalDistribution(tuple(dict.fromkeys(values)))
    space = Space(options.search, options.trials, options.seed, base, distributions)
    for params in space.combinations():  # raises for what is not allowed together
        recipe.changed(params)
    return space


def _range(recipe: Recipe, name: str, text: str) -> Distribution:
    low, high = (_read(recipe, name, part) for part in text.split(":", 1))
    if not (isinstance(low, int | float) and low < high):  # type: ignore[operator]
        raise UserError(f"--vary {name}={text}: a range is LOW:HIGH of a number, LOW below HIGH")
    kind: Any = IntDistribution if isinstance(low, int) else FloatDistribution
    return kind(low, high, log=low > 0)


def _read(recipe: Recipe, name: str, value: Any) -> Value:
    """A setting's value as Optuna can hold it: lists become text with commas."""
    value = recipe.changed({name: value}).settings()[name]
    return ",".join(map(str, value)) if isinstance(value, tuple | list) else value
