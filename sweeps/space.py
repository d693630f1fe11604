"""What a sweep tries: one declaration for linear and grid search (cells, enumerated here) and for samplers (ranges)."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, cast

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution

from sweeps.errors import SweepError

Search = Literal["linear", "grid", "tpe", "random", "cmaes"]
FIXED: tuple[Search, ...] = ("linear", "grid")
SAMPLED: tuple[Search, ...] = ("tpe", "random", "cmaes")
LAMBDAS = ("clip", "seg", "depth", "normal")
Value = float | int | bool | str


@dataclass(frozen=True)
class Setting:
    """A recipe setting that a sweep varies, or keeps at ``base`` when it has neither ``values`` nor a range.

    Attributes:
        name: field of the recipe (``lambda_seg``, ``lr``, ``experts`` …).
        base: its value while another one is varied (linear search), and in the base cell.
        values: what fixed searches try; what samplers choose from.
        low, high: range of samplers; drawn on a log scale where ``low`` is above 0.
        kind: ``float``, ``int`` or ``choice`` (booleans, words, lists as comma-separated text).
    """

    name: str
    base: Value
    values: tuple[Value, ...] = ()
    low: float | None = None
    high: float | None = None
    kind: Literal["float", "int", "choice"] = "float"

    def distribution(self, categorical: bool = False) -> BaseDistribution:
        """Optuna's distribution that holds every value; ``categorical`` keeps samplers to just ``values``."""
        everything = tuple(dict.fromkeys((*self.values, self.base))) if not categorical else self.values
        if self.kind == "choice" or (categorical and self.values):
            return CategoricalDistribution(everything)
        numbers = [float(value) for value in (everything if self.low is None else (self.low, self.high))]  # type: ignore[arg-type]
        low, high = min(numbers), max(numbers)
        if self.kind == "int":
            return IntDistribution(int(low), int(high), log=0 < low < high)
        return FloatDistribution(low, high, log=0 < low < high)


@dataclass(frozen=True)
class Cell:
    """One thing to try. ``key`` is its identity in the study; ``params`` is None where a sampler chooses them."""

    key: str
    params: Mapping[str, Value] | None


@dataclass(frozen=True)
class Space:
    """The declaration of a sweep.

    Attributes:
        search: ``linear`` (one setting at a time, the others at their base), ``grid`` (every combination), or a sampler.
        settings: what is varied, and λs that are fixed; all become the trial's params.
        trials: how many trials a sampler gets.
        seed: of the samplers.
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
            found = [self.base]
            found += [{**self.base, s.name: value} for s in self.settings for value in s.values]
        else:
            varied = [setting for setting in self.settings if setting.values]
            combinations = itertools.product(*(setting.values for setting in varied))
            names = [setting.name for setting in varied]
            found = [{**self.base, **dict(zip(names, values, strict=True))} for values in combinations]
            found.sort(key=lambda params: params != self.base)  # stable: base first, where it is one of them
        unique = {cell_name(params): params for params in found}
        return [Cell(key, params) for key, params in unique.items()]

    def distributions(self) -> dict[str, BaseDistribution]:
        """Param name → Optuna distribution."""
        sampled = self.search in SAMPLED
        return {s.name: s.distribution(categorical=sampled and bool(s.values)) for s in self.settings}

    def suggest(self, trial: optuna.Trial) -> dict[str, Value]:
        """The trial's params: those of its cell, or what its sampler draws."""
        params: dict[str, Value] = {}
        for name, found in self.distributions().items():
            if isinstance(found, FloatDistribution):
                params[name] = trial.suggest_float(name, found.low, found.high, log=found.log)
            elif isinstance(found, IntDistribution):
                params[name] = trial.suggest_int(name, found.low, found.high, log=found.log)
            elif isinstance(found, CategoricalDistribution):
                params[name] = cast(Value, trial.suggest_categorical(name, found.choices))
        return params

    def identity(self) -> dict[str, Any]:
        """What must not change under a study (the number of trials may grow)."""
        settings = {s.name: {k: v for k, v in asdict(s).items() if k != "name"} for s in self.settings}
        return {"search": self.search, "settings": settings, "seed": self.seed}

    @staticmethod
    def from_identity(identity: Mapping[str, Any], trials: int) -> Space:
        """The inverse of ``identity``."""
        settings = tuple(
            Setting(name, **{**facts, "values": tuple(facts["values"])}) for name, facts in identity["settings"].items()
        )
        return Space(identity["search"], settings, trials, identity["seed"])


def cell_name(params: Mapping[str, Value]) -> str:
    """A cell's identity, readable: ``lambda_clip=1 lambda_seg=0.1 …``, in order of the names."""
    return " ".join(f"{name}={_text(params[name])}" for name in sorted(params))


def short(params: Mapping[str, Value], base: Mapping[str, Value] | None = None) -> str:
    """Params for people: ``λseg 0.1``; with ``base`` only those that differ from it, ``base`` when none does."""
    shown = {k: v for k, v in params.items() if base is None or k not in base or _text(v) != _text(base[k])}
    if not shown:
        return "base"
    return " ".join(f"{name.replace('lambda_', 'λ')} {_text(value)}" for name, value in shown.items())


def _text(value: Value) -> str:
    return f"{value:.6g}" if isinstance(value, int | float) and not isinstance(value, bool) else str(value)


def make_space(
    search: str,
    lambdas: Sequence[str] = LAMBDAS,
    values: Sequence[float] = (0.1, 1.0, 10.0),
    between: tuple[float, float] = (0.01, 100.0),
    *,
    vary: Mapping[str, str] | None = None,
    bases: Mapping[str, Value] | None = None,
    read: Callable[[str, str], Any] | None = None,
    trials: int = 40,
    seed: int = 0,
) -> Space:
    """A space from what a user says.

    Args:
        search: one of ``linear``, ``grid``, ``tpe``, ``random``, ``cmaes``.
        lambdas: which λs are varied (``clip``, ``seg``, ``depth``, ``normal``); the others stay at 1.
        values: what fixed searches try for each λ.
        between: range in which samplers draw each λ, log scale.
        vary: further recipe settings: ``{"lr": "1e-4,1e-3"}`` values (``|`` between lists, such as experts), or for samplers
            a range ``{"lr": "1e-5:1e-3"}``.
        bases: what settings are while they are not varied; λs default to 1, every other one in ``vary`` must be here.
        read: (name, text) → value of that recipe setting; raises for what does not fit.
        trials: how many trials a sampler gets.
        seed: of the samplers.

    Raises:
        SweepError: unknown search or λ, a value that is no weight, nothing to vary.
    """
    if search not in (*FIXED, *SAMPLED):
        raise SweepError(f"--search {search}: choose one of {', '.join((*FIXED, *SAMPLED))}")
    fixed = search in FIXED
    bases = dict(bases or {})
    for name in lambdas:
        if name not in LAMBDAS:
            raise SweepError(f"--lambdas {name}: choose among {', '.join(LAMBDAS)}")
    if fixed and (not values or any(not math.isfinite(v) or v < 0 for v in values)):
        raise SweepError("--values must be finite numbers, 0 or more, such as 0.1,1,10")
    if not fixed and not 0 < between[0] < between[1] < math.inf:
        raise SweepError("--range must be LOW,HIGH with 0 < LOW < HIGH, such as 0.01,100")
    if not fixed and trials < 1:
        raise SweepError("--trials must be at least 1")
    settings = []
    for name in LAMBDAS:
        base = float(bases.pop(f"lambda_{name}", 1.0))
        if name not in lambdas:
            settings.append(Setting(f"lambda_{name}", base))
        elif fixed:
            settings.append(Setting(f"lambda_{name}", base, tuple(dict.fromkeys(float(v) for v in values))))
        else:
            settings.append(Setting(f"lambda_{name}", base, low=float(between[0]), high=float(between[1])))
    for name, text in (vary or {}).items():
        if name.startswith("lambda_"):
            raise SweepError(f"--vary {name}: λs are varied by --lambdas with --values or --range")
        if name in ("name", "seed"):
            raise SweepError(
                f"--vary {name}: that is no setting to choose; --study names a sweep, --seeds measures the noise"
            )
        settings.append(_setting(name, text, bases[name], fixed, read or (lambda _, t: float(t))))
    if not any(s.values or s.low is not None for s in settings):
        raise SweepError("nothing to vary; name λs with --lambdas or settings with --vary")
    return Space(cast(Search, search), tuple(settings), 0 if fixed else trials, seed)


def _setting(name: str, text: str, base: Any, fixed: bool, read: Callable[[str, str], Any]) -> Setting:
    if ":" in text:
        if fixed:
            raise SweepError(f"--vary {name}={text}: linear and grid search need values (A,B,C), not a range")
        low, high = (read(name, part) for part in text.split(":", 1))
        if isinstance(low, bool) or not isinstance(low, int | float) or not low < high:
            raise SweepError(f"--vary {name}={text}: a range is LOW:HIGH of a number, LOW below HIGH")
        return Setting(name, base, low=low, high=high, kind="int" if isinstance(low, int) else "float")
    listed = isinstance(base, tuple | list)
    parts = text.split("|") if "|" in text or listed else text.split(",")
    values = [read(name, part.strip()) for part in parts if part.strip()]
    plain = tuple(dict.fromkeys(as_value(value) for value in values))
    if len(plain) < 1 or (not fixed and len(plain) < 2):
        raise SweepError(f"--vary {name}={text}: give at least two values, or a range LOW:HIGH")
    number = all(isinstance(v, int | float) and not isinstance(v, bool) for v in plain)
    whole = number and all(isinstance(v, int) for v in plain)
    return Setting(name, as_value(base), plain, kind="int" if whole else "float" if number else "choice")


def as_value(value: Any) -> Value:
    """A recipe's value as a param can hold it: lists become comma-separated text."""
    return ",".join(map(str, value)) if isinstance(value, tuple | list) else value
