"""The space of a sweep: cells for linear and grid search, ranges for samplers."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import optuna
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from pydantic import PositiveInt

from backbones.cliptex.tasks import PAPER, task_names
from common.errors import UserError
from common.settings import Names, Numbers, Seed, options_dataclass

Search = Literal["linear", "grid", "tpe", "random", "cmaes"]
FIXED: tuple[Search, ...] = ("linear", "grid")
SAMPLED: tuple[Search, ...] = ("tpe", "random", "cmaes")
LAMBDAS = ("clip", *PAPER)  # always params; those of other tasks only if they are named
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
    between: Numbers = (0.01, 100.0)
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
        name: field of the recipe (``lambda_seg``, ``lr``, ``experts`` …).
        base: its value in the base cell, and while another setting is varied (linear search).
        values: of fixed searches; choices of samplers.
        low, high: range of samplers; on a log scale where ``low`` is above 0.
    """

    name: str
    base: Value
    values: tuple[Value, ...] = ()
    low: float | None = None
    high: float | None = None

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
        settings: varied settings and fixed λs; all are params of the trials.
    """

    search: Search
    settings: tuple[Setting, ...]
    trials: int = 0
    seed: int = 0

    @property
    def base(self) -> dict[str, Value]:
        """Every setting at its base."""
        return {setting.name: setting.base for setting in self.settings}

    def cells(self) -> dict[str, dict[str, Value]]:
        """The combinations to train, the base cell first: identity in the study → params.

        Params are empty where a sampler chooses them.
        """
        if self.search in SAMPLED:
            return {f"trial {number + 1}": {} for number in range(self.trials)}
        base = self.base
        if self.search == "linear":
            every = [base, *({**base, s.name: value} for s in self.settings for value in s.values)]
        else:
            values = [setting.values or (setting.base,) for setting in self.settings]
            every = [dict(zip(base, each, strict=True)) for each in itertools.product(*values)]
            every.sort(key=lambda params: params != base)
        return {cell_name(params): params for params in every}

    def distributions(self) -> dict[str, Distribution]:
        """Param name → Optuna distribution."""
        sampled = self.search in SAMPLED
        return {setting.name: setting.distribution(sampled) for setting in self.settings}

    def suggest(self, trial: optuna.Trial) -> dict[str, Value]:
        """The trial's params: those of its cell, or a sampler's."""
        return {
            name: trial._suggest(name, distribution)
            for name, distribution in self.distributions().items()
        }

    def identity(self) -> dict[str, Any]:
        """All that must not change in a study (the number of trials may grow)."""
        settings = [asdict(setting) for setting in self.settings]
        return {
            "search": self.search,
            "settings": {each.pop("name"): each for each in settings},
            "seed": self.seed,
        }

    @staticmethod
    def from_identity(identity: Mapping[str, Any], trials: int) -> Space:
        """The inverse of ``identity``."""
        settings = tuple(
            Setting(name, **{**fields, "values": tuple(fields["values"])})
            for name, fields in identity["settings"].items()
        )
        return Space(identity["search"], settings, trials, identity["seed"])


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


def make_space(
    request: SearchRequest,
    bases: Mapping[str, Value] | None = None,
    read: Callable[[str, str], Any] = lambda _, text: float(text),
) -> Space:
    """A space from a user's options.

    Args:
        bases: setting → its value while it is not varied; λs default to 1, every other setting in
            ``vary`` must be included.
        read: (name, text) → value of that recipe setting; raises for an invalid one.

    Raises:
        UserError: an unknown λ, an invalid value or range, or nothing to vary.
    """
    search, bases = request.search, bases or {}
    fixed = search in FIXED
    names = ("clip", *task_names())
    for name in request.lambdas:
        if name not in names:
            raise UserError(f"--lambdas {name}: choose among {', '.join(names)}")
    varied: dict[str, Any]
    if fixed:
        varied = {"values": tuple(dict.fromkeys(request.values))}
        if not varied["values"] or min(varied["values"]) < 0:
            raise UserError("--values must be numbers, 0 or more, such as 0.1,1,10")
    else:
        varied = dict(zip(("low", "high"), request.between, strict=True))
        if not 0 < varied["low"] < varied["high"]:
            raise UserError("--range must be LOW,HIGH with 0 < LOW < HIGH, such as 0.01,100")
    explicit = {name.removeprefix("lambda_") for name in bases if name.startswith("lambda_")}
    settings = []
    for name in (*LAMBDAS, *sorted({*request.lambdas, *explicit} - set(LAMBDAS))):
        base = float(bases.get(f"lambda_{name}", 1.0))
        settings.append(
            Setting(f"lambda_{name}", base, **(varied if name in request.lambdas else {}))
        )
    for name, text in request.vary.items():
        if name.startswith("lambda_"):
            raise UserError(f"--vary {name}: λs are varied by --lambdas with --values or --range")
        if name in ("name", "seed"):
            raise UserError(
                f"--vary {name}: not a setting; use --study for a sweep's name, --seeds for noise"
            )
        settings.append(_setting(name, text, bases[name], fixed, read))
    if not any(setting.varied for setting in settings):
        raise UserError("nothing to vary; name λs with --lambdas or settings with --vary")
    trials = 0 if fixed else request.trials
    return Space(search, tuple(settings), trials, request.seed)


def _setting(
    name: str, text: str, base: Any, fixed: bool, read: Callable[[str, str], Any]
) -> Setting:
    if ":" in text:
        if fixed:
            raise UserError(
                f"--vary {name}={text}: linear and grid search need values (A,B,C), not a range"
            )
        low, high = (read(name, part) for part in text.split(":", 1))
        if not _is_number(low) or not low < high:
            raise UserError(
                f"--vary {name}={text}: a range is LOW:HIGH of a number, LOW below HIGH"
            )
        return Setting(name, base, low=low, high=high)
    parts = text.split("|") if "|" in text or isinstance(base, tuple | list) else text.split(",")
    read_values = [as_value(read(name, part.strip())) for part in parts if part.strip()]
    values = tuple(dict.fromkeys(read_values))
    if len(values) < (1 if fixed else 2):
        raise UserError(f"--vary {name}={text}: give at least two values, or a range LOW:HIGH")
    return Setting(name, as_value(base), values)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def as_value(value: Any) -> Value:
    """A recipe's value as a param can hold it: lists become comma-separated text."""
    return ",".join(map(str, value)) if isinstance(value, tuple | list) else value
