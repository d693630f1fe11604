"""What a sweep tries: one declaration for linear and grid search (cells, enumerated here) and for
samplers (ranges)."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, NamedTuple, cast

import optuna
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

from backbones.cliptex.tasks import PAPER, task_names
from common.errors import UserError

Search = Literal["linear", "grid", "tpe", "random", "cmaes"]
FIXED: tuple[Search, ...] = ("linear", "grid")
SAMPLED: tuple[Search, ...] = ("tpe", "random", "cmaes")
LAMBDAS = ("clip", *PAPER)  # always params; those of other tasks where they are named
MOST_CELLS = 100_000
Value = float | int | bool | str
Distribution = CategoricalDistribution | FloatDistribution | IntDistribution


@dataclass(frozen=True)
class Wanted:
    """What a user says of a search.

    Attributes:
        search: ``linear`` (one setting at a time, the others at their base), ``grid`` (every
            combination), or a sampler.
        lambdas: which λs are varied; the others stay at their base.
        values: what fixed searches try for each λ.
        between: range in which samplers draw each λ, log scale.
        vary: further recipe settings: ``{"lr": "1e-4,1e-3"}`` values (``|`` between lists, such as
            experts), or for samplers a range ``{"lr": "1e-5:1e-3"}``.
        trials: how many a sampler gets; seed: of the samplers, and of training and probing.
    """

    search: str = "linear"
    lambdas: Sequence[str] = LAMBDAS
    values: Sequence[float] = (0.1, 1.0, 10.0)
    between: Sequence[float] = (0.01, 100.0)
    vary: Mapping[str, str] = field(default_factory=dict)
    trials: int = 40
    seed: int = 0


@dataclass(frozen=True)
class Setting:
    """A recipe setting that a sweep varies, or keeps at ``base`` when it has neither ``values`` nor
    a range.

    Attributes:
        name: field of the recipe (``lambda_seg``, ``lr``, ``experts`` …).
        base: its value while another one is varied (linear search), and in the base cell.
        values: what fixed searches try; what samplers choose from.
        low, high: range of samplers; drawn on a log scale where ``low`` is above 0.

    A value is a number, or a choice: a boolean, a word, a list as comma-separated text.
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
        """Optuna's distribution that holds every value; samplers choose from ``values``, the base
        is not one of them."""
        if sampled and self.values:
            return CategoricalDistribution(self.values)
        ends: Any = (*self.values, self.base) if self.low is None else (self.low, self.high)
        if not all(map(_is_number, ends)):
            return CategoricalDistribution(tuple(dict.fromkeys(ends)))
        kind = IntDistribution if all(isinstance(end, int) for end in ends) else FloatDistribution
        return kind(min(ends), max(ends), log=0 < min(ends) < max(ends))


class Cell(NamedTuple):
    """One thing to try. ``key`` is its identity in the study; ``params`` is None where a sampler
    chooses them."""

    key: str
    params: Mapping[str, Value] | None


@dataclass(frozen=True)
class Space:
    """The declaration of a sweep.

    Attributes:
        search, trials, seed: see ``Wanted``.
        settings: what is varied, and λs that are fixed; all become the trial's params.
    """

    search: Search
    settings: tuple[Setting, ...]
    trials: int = 0
    seed: int = 0

    @property
    def base(self) -> dict[str, Value]:
        """Every setting at its base."""
        return {setting.name: setting.base for setting in self.settings}

    def cells(self) -> list[Cell]:
        """What must be finished: the base cell first, no cell twice."""
        if self.search in SAMPLED:
            return [Cell(f"trial {number + 1}", None) for number in range(self.trials)]
        if self.search == "linear":
            found = [
                self.base,
                *({**self.base, s.name: value} for s in self.settings for value in s.values),
            ]
        else:
            combinations = itertools.product(
                *(setting.values or (setting.base,) for setting in self.settings)
            )
            found = [dict(zip(self.base, values, strict=True)) for values in combinations]
            found.sort(
                key=lambda params: params != self.base
            )  # stable: base first, where it is one of them
        return [Cell(*each) for each in {cell_name(params): params for params in found}.items()]

    def distributions(self) -> dict[str, Distribution]:
        """Param name → Optuna distribution."""
        return {
            setting.name: setting.distribution(self.search in SAMPLED) for setting in self.settings
        }

    def suggest(self, trial: optuna.Trial) -> dict[str, Value]:
        """The trial's params: those of its cell, or what its sampler draws."""
        params: dict[str, Any] = {}
        for name, found in self.distributions().items():
            if isinstance(found, CategoricalDistribution):
                params[name] = trial.suggest_categorical(name, found.choices)
            else:
                suggest = (
                    trial.suggest_int if isinstance(found, IntDistribution) else trial.suggest_float
                )
                params[name] = suggest(name, found.low, found.high, log=found.log)  # type: ignore[arg-type]
        return params

    def identity(self) -> dict[str, Any]:
        """What must not change under a study (the number of trials may grow)."""
        settings = [asdict(setting) for setting in self.settings]
        return {
            "search": self.search,
            "settings": {each.pop("name"): each for each in settings},
            "seed": self.seed,
        }

    @staticmethod
    def from_identity(identity: Mapping[str, Any], trials: int) -> Space:
        """The inverse of ``identity``."""
        found = identity["settings"].items()
        settings = tuple(
            Setting(name, **{**each, "values": tuple(each["values"])}) for name, each in found
        )
        return Space(identity["search"], settings, trials, identity["seed"])


def cell_name(params: Mapping[str, Value]) -> str:
    """A cell's identity, readable: ``lambda_clip=1 lambda_seg=0.1 …``, in order of the names."""
    return " ".join(f"{name}={_text(params[name])}" for name in sorted(params))


def short(params: Mapping[str, Value], base: Mapping[str, Value] | None = None) -> str:
    """Params for people: ``λseg 0.1``; with ``base`` only those that differ from it, ``base`` when
    none does."""
    shown = {
        k: v
        for k, v in params.items()
        if base is None or k not in base or _text(v) != _text(base[k])
    }
    return (
        " ".join(f"{name.replace('lambda_', 'λ')} {_text(value)}" for name, value in shown.items())
        or "base"
    )


def _text(value: Value) -> str:
    return f"{value:.6g}" if _is_number(value) else str(value)


def make_space(
    wanted: Wanted,
    bases: Mapping[str, Value] | None = None,
    read: Callable[[str, str], Any] = lambda _, text: float(text),
) -> Space:
    """A space from what a user says.

    Args:
        bases: what settings are while they are not varied; λs default to 1, every other one in
            ``vary`` must be here.
        read: (name, text) → value of that recipe setting; raises for what does not fit.

    Raises:
        UserError: unknown search or λ, a value that is no weight, nothing to vary, more than
            ``MOST_CELLS``.
    """
    if wanted.search not in (*FIXED, *SAMPLED):
        raise UserError(f"--search {wanted.search}: choose one of {', '.join((*FIXED, *SAMPLED))}")
    fixed, bases, values, between = (
        wanted.search in FIXED,
        bases or {},
        wanted.values,
        wanted.between,
    )
    for name in wanted.lambdas:
        if name not in (known := ("clip", *task_names())):
            raise UserError(f"--lambdas {name}: choose among {', '.join(known)}")
    if fixed and (not values or any(not math.isfinite(v) or v < 0 for v in values)):
        raise UserError("--values must be finite numbers, 0 or more, such as 0.1,1,10")
    if not fixed and not (len(between) == 2 and 0 < between[0] < between[1] < math.inf):
        raise UserError("--range must be LOW,HIGH with 0 < LOW < HIGH, such as 0.01,100")
    if not fixed and wanted.trials < 1:
        raise UserError("--trials must be at least 1")
    tried: dict[str, Any] = {"values": tuple(dict.fromkeys(map(float, values)))}
    if not fixed:
        tried = dict(zip(("low", "high"), map(float, between), strict=True))
    settings = []
    given = {
        *wanted.lambdas,
        *(name.removeprefix("lambda_") for name in bases if name.startswith("lambda_")),
    }
    for name in (*LAMBDAS, *sorted(given - set(LAMBDAS))):
        base = float(bases.get(f"lambda_{name}", 1.0))
        settings.append(
            Setting(f"lambda_{name}", base, **(tried if name in wanted.lambdas else {}))
        )
    for name, text in wanted.vary.items():
        if name.startswith("lambda_"):
            raise UserError(f"--vary {name}: λs are varied by --lambdas with --values or --range")
        if name in ("name", "seed"):
            told = "that is no setting to choose; --study names a sweep, --seeds measures the noise"
            raise UserError(f"--vary {name}: {told}")
        settings.append(_setting(name, text, bases[name], fixed, read))
    if not any(setting.varied for setting in settings):
        raise UserError("nothing to vary; name λs with --lambdas or settings with --vary")
    counts = [len(setting.values) for setting in settings]
    count = (
        1 + sum(counts) if wanted.search == "linear" else math.prod(each or 1 for each in counts)
    )
    if (count := count if fixed else wanted.trials) > MOST_CELLS:
        raise UserError(
            f"{count:,} cells, each a training, are more than {MOST_CELLS:,}; vary less, or give"
            " fewer values"
        )
    return Space(
        cast(Search, wanted.search), tuple(settings), 0 if fixed else wanted.trials, wanted.seed
    )


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
    values = tuple(
        dict.fromkeys(as_value(read(name, part.strip())) for part in parts if part.strip())
    )
    if len(values) < (1 if fixed else 2):
        raise UserError(f"--vary {name}={text}: give at least two values, or a range LOW:HIGH")
    return Setting(name, as_value(base), values)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def as_value(value: Any) -> Value:
    """A recipe's value as a param can hold it: lists become comma-separated text."""
    return ",".join(map(str, value)) if isinstance(value, tuple | list) else value
