"""A λ sweep as it is in MLflow: its trials, the best, the Pareto front, and the figures that Optuna
drew of it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import pandas as pd

from common.errors import nearest
from reports.errors import TrackingError
from reports.metrics import OLDER_LOWER
from reports.mlflow.query import ANY, Store, StoredRun, why
from reports.parts.figures import Figure
from reports.parts.provenance import read_json
from reports.parts.tables import number

# on every run of a sweep; trials have a `trial` too, cells that were run again an `again`
STUDY_TAG = "study"
OBJECTIVES = {"gain": "mean gain (%)", "dense": "dense gain (%)", "zero-shot": "zero-shot gain (%)"}
LAMBDAS = (
    "lambda_clip",
    "lambda_seg",
    "lambda_depth",
    "lambda_normal",
)  # in this order; others after them
# of a line of summary.json → heading
SUMMARY = {
    "what": "what",
    "metric": "metric",
    "best": "best setting",
    "value": "value",
    "base": "base",
    "baseline": "clip-ft",
    "confirmed": "again",
    "noise": "noise",
    "verdict": "best against base",
}
FACTS = {
    "suite": "suite",
    "storage": "storage",
    "git.commit": "code",
    "best.trial": "best trial",
}  # tags → words


@dataclass(frozen=True)
class Trial:
    """One trial: what was varied, and what came out.

    Attributes:
        params: what was varied or fixed → value; numbers as float.
        objectives: name → value; empty when it did not finish.
        state: ``complete``, or why there is no value.
    """

    run: StoredRun
    name: str
    params: dict[str, float | str]
    objectives: dict[str, float]
    state: str = "complete"

    @property
    def allowed(self) -> bool:
        """Whether it keeps the sweep's constraint."""
        return self.run.metrics.get("constraint/zero-shot", 0.0) <= 0


@dataclass
class Study:
    """A sweep.

    Attributes:
        directions: objective → +1 (more is better) or -1.
        varied: parameters with more than one value, λs first.
        summary: what the sweep says of each objective and task: best, base and clip-ft with the
            noise of seeds.
        figures: Optuna's.
    """

    name: str
    parent: StoredRun | None
    trials: list[Trial]
    directions: dict[str, int]
    varied: list[str]
    notes: list[str] = field(default_factory=list)
    summary: list[dict[str, Any]] = field(default_factory=list)
    figures: list[Figure] = field(default_factory=list)

    @property
    def complete(self) -> list[Trial]:
        return [trial for trial in self.trials if trial.objectives]

    def best(self, objective: str) -> Trial | None:
        """The trial with the best value of an objective, of those that keep the constraint where
        any does."""
        there = [trial for trial in self.complete if objective in trial.objectives]
        sign = self.directions[objective]
        return max(
            there,
            key=lambda trial: (trial.allowed, sign * trial.objectives[objective]),
            default=None,
        )

    def front(self) -> list[Trial]:
        """Trials that no other one beats in every objective (all of them finite)."""
        names = list(self.directions)
        there = [
            trial for trial in self.complete if all(name in trial.objectives for name in names)
        ]

        def beats(a: Trial, b: Trial) -> bool:
            gaps = [self.directions[n] * (a.objectives[n] - b.objectives[n]) for n in names]
            return all(gap >= 0 for gap in gaps) and any(gap > 0 for gap in gaps)

        return [trial for trial in there if not any(beats(other, trial) for other in there)]

    def facts(self) -> list[tuple[str, str]]:
        """What is known of the sweep as a whole."""
        tags = self.parent.tags if self.parent else {}
        return [(words, tags[key]) for key, words in FACTS.items() if tags.get(key)]

    @cached_property
    def headline(self) -> str:
        """The sweep's result in a sentence."""
        objective = next(iter(self.directions))
        best = self.best(objective)
        assert best is not None
        more = (
            f", {len(self.front())} of them on the Pareto front" if len(self.directions) > 1 else ""
        )
        return (
            f"{settings(best)} is best by {objective_label(objective)}"
            f" ({number(best.objectives[objective], 2)}) of {len(self.complete)} finished"
            f" trials{more}{self._confirmed(objective)}."
        )

    def _confirmed(self, objective: str) -> str:
        """How the best trial stood against the base setting on fresh seeds, as the end of a
        sentence."""
        label = objective_label(objective).removesuffix(" (%)")
        row = next(
            (r for r in self.summary if not r["metric"] and str(r["what"]).startswith(label)), {}
        )
        if row.get("best") == "base":
            return ""
        gap = row.get("confirmed")
        told = f"({number(gap, 2, True)} to the base setting)" if isinstance(gap, float) else ""
        return {
            "clear": f"; run again on fresh seeds it is better {told}",
            "within noise": f"; run again on fresh seeds the difference is within noise {told}",
        }.get(
            row.get("verdict") or "",
            "; that was not confirmed on fresh seeds, and the best of many is also the luckiest",
        )


def find_study(store: Store, name: str, experiments: Sequence[str] = ()) -> Study:
    """The study ``name``, looked for in the named experiments or in all.

    Raises:
        TrackingError: there is none of that name, or none of its trials is finished.
    """
    every = list(experiments) or list(store.experiments())
    mine = store.runs(every, {STUDY_TAG: name})
    if not mine:
        known = {run.tags[STUDY_TAG] for run in store.runs(every, {STUDY_TAG: ANY})}
        raise TrackingError(f"no study {name!r} in the MLflow store; {nearest(name, known)}")
    study = build_study(name, mine, store)
    if not study.complete:
        raise TrackingError(
            f"no trial of study {name!r} is finished; continue the sweep, then report again"
        )
    return study


def build_study(name: str, runs: Sequence[StoredRun], store: Store) -> Study:
    """A study from its runs: those tagged as trials, and the parent of all with its summary and
    figures."""
    parent = next((run for run in reversed(runs) if run.tags.get("stage") == "sweep"), None)
    told = filter(None, parent.tags.get("directions", "").split(",")) if parent else ()
    directions = {
        name: -1 if sign == "-1" else 1 for name, _, sign in (one.rpartition(":") for one in told)
    }
    trials: dict[tuple, Trial] = {}
    replaced = 0
    for run in sorted(runs, key=lambda run: (run.started, run.id)):
        if "trial" not in run.tags or not run.params:
            continue
        values = {
            k.removeprefix("objective/"): v
            for k, v in run.metrics.items()
            if k.startswith("objective/")
        }
        finished = run.status == "FINISHED" and values
        for key in values:  # those of older sweeps, which did not say it
            directions.setdefault(key, -1 if key.rpartition("/")[2] in OLDER_LOWER else 1)
        state = "complete" if finished else "no value" if run.status == "FINISHED" else why(run)
        params = {key: _number(run.params[key]) for key in _in_order(run.params)}
        trial = Trial(run, run.tags["trial"], params, values if finished else {}, state)
        cell = tuple(sorted(run.params.items()))
        if cell in trials and trials[cell].objectives:
            replaced += 1
            if not trial.objectives:
                continue
        trials[cell] = trial
    found = list(trials.values())
    varied = [
        n
        for n in _in_order({n for t in found for n in t.params})
        if len({t.params.get(n) for t in found}) > 1
    ]
    notes = (
        [f"{replaced} trials ran the same cell again; the newest finished one counts"]
        if replaced
        else []
    )
    if broken := [trial for trial in found if not trial.objectives]:
        notes.append(
            f"{len(broken)} of {len(found)} trials have no value, the first: {broken[0].state}"
        )
    kept = {
        file: read_json(store, parent, file) if parent else {}
        for file in ("summary.json", "plots.json")
    }
    lines = [line for line in kept["summary.json"] if isinstance(line, dict)]
    figures = [
        Figure(
            f"optuna-{name}-{place}",
            one["title"],
            "Drawn by Optuna.",
            "the table of trials has its numbers",
            one["spec"],
            300 + 60 * max(len(varied) - 2, 0),
        )
        for place, one in enumerate(kept["plots.json"])
    ]
    return Study(name, parent, found, directions, varied, notes, lines, figures)


def _number(text: str) -> float | str:
    try:
        return float(text)
    except ValueError:
        return text


def _in_order(names: Any) -> list[str]:
    return sorted(
        names, key=lambda name: (LAMBDAS.index(name) if name in LAMBDAS else len(LAMBDAS), name)
    )


def objective_label(name: str) -> str:
    """An objective as people read it."""
    return OBJECTIVES.get(name, name)


def parameter_label(name: str) -> str:
    """A parameter as people read it."""
    return name.replace("lambda_", "λ ")


def settings(trial: Trial) -> str:
    """A trial's λs in a line."""
    return ", ".join(
        f"{parameter_label(name)} {value if isinstance(value, str) else f'{value:g}'}"
        for name, value in trial.params.items()
    )


def study_frame(study: Study) -> pd.DataFrame:
    """A row for each trial, best first, those without a value last: trial, parameters, objectives,
    state, run."""
    names = list(study.directions)
    front = {trial.run.id for trial in study.front()} if len(names) > 1 else set()
    params = study.varied or _in_order({name for trial in study.trials for name in trial.params})

    def key(trial: Trial) -> tuple:
        value = trial.objectives.get(names[0], math.nan) if names else math.nan
        return (
            not math.isfinite(value),
            -study.directions[names[0]] * value if math.isfinite(value) else 0.0,
            trial.name,
        )

    return pd.DataFrame(
        {
            "trial": trial.name,
            **{parameter_label(name): trial.params.get(name) for name in params},
            **{objective_label(name): trial.objectives.get(name, math.nan) for name in names},
            "state": "on the Pareto front" if trial.run.id in front else trial.state,
            "run": trial.run.id,
        }
        for trial in sorted(study.trials, key=key)
    )


def summary_frame(study: Study) -> pd.DataFrame:
    """What the sweep says of each objective and task."""
    frame = pd.DataFrame(
        [{words: line.get(key) for key, words in SUMMARY.items()} for line in study.summary]
    )
    signs = [
        {1: " ↑", -1: " ↓"}.get(line.get("sign", 0), "") * bool(line.get("metric"))
        for line in study.summary
    ]
    return frame.assign(
        metric=[f"{m or ''}{sign}" for m, sign in zip(frame["metric"], signs, strict=True)]
    )
