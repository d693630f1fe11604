"""The space of a sweep: cells for linear and grid search, ranges for samplers."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Annotated, Any, Literal

import optuna
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from pydantic import Field, PositiveInt, TypeAdapter

from backbones.cliptex.tasks import PAPER, task_names
from backbones.cliptex.training.recipes import LAMBDA, Recipe
from cliptex_common.errors import UserError
from cliptex_common.settings import Names, Numbers, Seed, options_dataclass

Search = Literal["linear", "grid", "tpe", "random", "cmaes"]
SAMPLED = ("tpe", "random", "cmaes")
LAMBDAS = ("clip", *PAPER)  # always params; those of other tasks only if they are named
BASE = dict.fromkeys((LAMBDA + name for name in LAMBDAS), 1.0)
Value = float | int | bool | str
Distribution = CategoricalDistribution | FloatDistribution | IntDistribution


@options_dataclass
class SearchRequest:
    """A user's options for a search."""

    search: Search = "linear"
    """linear: one λ at a time, the others at their base, as in the paper; grid: every combination;
    or a sampler: tpe, random, cmaes"""
    lambdas: Names = LAMBDAS
    """λs that are varied, the others stay at their base (default: all four)"""
    values: Numbers = (0.1, 1.0, 10.0)
    """values of each λ in linear and grid search (default: 0.1,1,10)"""
    between: Annotated[Numbers, Field(alias="range")] = (0.01, 100.0)
    """range of each λ for samplers, on a log scale (default: 0.01,100)"""
    vary: Mapping[str, str] = field(default_factory=dict)
    """also vary a recipe setting: lr=1e-4,1e-3 or 'experts=seg|seg,depth' in grids, for samplers a
    range lr=1e-5:1e-3 (repeatable)"""
    trials: PositiveInt = 40
    """trials of a sampler; may be raised later"""
    seed: Seed = 0
    """of the samplers, trainings and probes"""


@dataclass(frozen=True)
class Setting:
    """A recipe setting, varied over ``values`` or a range, or fixed at ``base`` without either.

    A value is a number, or a choice: a boolean, a word, a list as comma-separated text.

    Attributes:
        base: its value in the base cell, and while another setting is varied (linear search).
        values: of fixed searches; choices of samplers.
        low, high: range of samplers; on a log scale where ``low`` is above 0.
    """

    base: Value
    values: tuple[Value, ...] = ()
    low: float | int | None = None
    high: float | int | None = None

    @property
    def varied(self) -> bool:
        return bool(self.values) or self.low is not None

    def distribution(self, sampled: bool) -> Distribution:
        """Optuna's distribution that contains every value; samplers do not choose the base."""
        if sampled and self.values:
            return CategoricalDistribution(self.values)
        ends: Any = (*self.values, self.base) if self.low is None else (self.low, self.high)
        if not all(map(_is_number, ends)):
            return CategoricalDistribution(tuple(dict.fromkeys(ends)))
        kind = IntDistribution if all(isinstance(end, int) for end in ends) else FloatDistribution
        return kind(min(ends), max(ends), log=0 < min(ends) < max(ends))


@dataclass(frozen=True)
class Space:
    """The declaration of a sweep.

    Attributes:
        search, trials, seed: see ``SearchRequest``.
        settings: varied settings and fixed λs by their names in the recipe (``lambda_seg``,
            ``lr``, ``experts`` …); all are params of the trials.
    """

    search: Search
    settings: Mapping[str, Setting]
    trials: int = 0
    seed: int = 0

    @property
    def base(self) -> dict[str, Value]:
        """Every setting at its base."""
        return {name: setting.base for name, setting in self.settings.items()}

    def cells(self) -> dict[str, dict[str, Value]]:
        """The combinations to train, the base cell first: identity in the study → params.

        Params are empty where a sampler chooses them.
        """
        if self.search in SAMPLED:
            return {f"trial {number + 1}": {} for number in range(self.trials)}
        base = self.base
        if self.search == "linear":
            every = [base]
            for name, setting in self.settings.items():
                every += [{**base, name: value} for value in setting.values]
        else:
            values = [setting.values or (setting.base,) for setting in self.settings.values()]
            every = [dict(zip(base, each, strict=True)) for each in itertools.product(*values)]
            every.sort(key=lambda params: params != base)
        return {cell_name(params): params for params in every}

    def distributions(self) -> dict[str, Distribution]:
        """Param name → Optuna distribution."""
        sampled = self.search in SAMPLED
        return {name: setting.distribution(sampled) for name, setting in self.settings.items()}

    def suggest(self, trial: optuna.Trial) -> dict[str, Value]:
        """The trial's params: those of its cell, or a sampler's."""
        return {
            name: trial._suggest(name, distribution)
            for name, distribution in self.distributions().items()
        }

    def identity(self) -> dict[str, Any]:
        """All that must not change in a study (the number of trials may grow)."""
        identity = asdict(self)
        del identity["trials"]
        return identity

    @staticmethod
    def from_identity(identity: Mapping[str, Any], trials: int) -> Space:
        """The inverse of ``identity``."""
        return TypeAdapter(Space).validate_python({**identity, "trials": trials})


def cell_name(params: Mapping[str, Value]) -> str:
    """A cell's identity, readable: ``lambda_clip=1 lambda_seg=0.1 …``, in order of the names."""
    return " ".join(f"{name}={_text(params[name])}" for name in sorted(params))


def short(params: Mapping[str, Value], base: Mapping[str, Value] | None = None) -> str:
    """Params for people: ``λseg 0.1``; with ``base`` only differences to it, ``base`` for none."""
    base = base or {}
    shown = [
        f"{name.replace('lambda_', 'λ')} {_text(value)}"
        for name, value in params.items()
        if name not in base or _text(value) != _text(base[name])
    ]
    return " ".join(shown) or "base"


def _text(value: Value) -> str:
    return f"{value:.6g}" if _is_number(value) else str(value)


def make_space(request: SearchRequest, recipe: Recipe) -> Space:
    """A space from a user's options.

    Args:
        recipe: gives every setting its base, and reads the values of others.

    Raises:
        UserError: an unknown setting or λ, an invalid value or range, or nothing to vary.
    """
    for name in request.lambdas:
        if name not in (names := ("clip", *task_names())):
            raise UserError(f"--lambdas {name}: choose among {', '.join(names)}")
    if not request.values or min(request.values) < 0:
        raise UserError("--values must be numbers, 0 or more, such as 0.1,1,10")
    low, *highs = request.between
    if len(highs) != 1 or not 0 < low < highs[0]:
        raise UserError("--range must be LOW,HIGH with 0 < LOW < HIGH, such as 0.01,100")
    sampled = request.search in SAMPLED
    varied: dict[str, Any] = {"values": tuple(dict.fromkeys(request.values))}
    if sampled:
        varied = {"low": low, "high": highs[0]}
    settings = {}
    for name in (*LAMBDAS, *sorted({*request.lambdas, *recipe.lambdas} - {*LAMBDAS})):
        options = varied if name in request.lambdas else {}
        settings[LAMBDA + name] = Setting(recipe.weight(name), **options)
    for name, text in request.vary.items():
        settings[name] = _setting(name, text, recipe, sampled)
    if not any(setting.varied for setting in settings.values()):
        raise UserError("nothing to vary; name λs with --lambdas or settings with --vary")
    trials = request.trials if sampled else 0
    return Space(request.search, settings, trials, request.seed)


def _setting(name: str, text: str, recipe: Recipe, sampled: bool) -> Setting:
    """A setting from ``--vary name=text``."""
    option = f"--vary {name}={text}"
    if name.startswith(LAMBDA) or name in ("name", "seed"):
        raise UserError(f"{option}: use --lambdas for λs, --confirm for seeds, --study for names")

    def read(part: str) -> Any:
        return as_value(recipe.changed({name: part.strip()}).settings()[name])

    if ":" in text:
        low, high = map(read, text.split(":", 1))
        if not sampled:
            raise UserError(f"{option}: linear and grid search need values (A,B,C), not a range")
        if not (_is_number(low) and low < high):
            raise UserError(f"{option}: a range is LOW:HIGH of a number, LOW below HIGH")
        return Setting(recipe.settings()[name], low=low, high=high)
    are_lists = "|" in text or isinstance(recipe.settings().get(name), tuple)
    parts = text.split("|" if are_lists else ",")
    values = tuple(dict.fromkeys(read(part) for part in parts if part.strip()))
    if len(values) < 1 + sampled:
        raise UserError(f"{option}: give at least two values, or a range LOW:HIGH")
    return Setting(as_value(recipe.settings()[name]), values)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def as_value(value: Any) -> Value:
    """A recipe's value as a param can hold it: lists become comma-separated text."""
    return ",".join(map(str, value)) if isinstance(value, tuple | list) else value
