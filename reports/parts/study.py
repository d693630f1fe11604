"""A λ sweep as MLflow stores it: trials, the best one, the Pareto front, and Optuna's figures."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd

from cliptex_common.errors import suggest
from reports.cell import Record
from reports.errors import TrackingError
from reports.mlflow.query import Store
from reports.parts.figures import Figure
from reports.parts.tables import decimal

OBJECTIVES = {"gain": "mean gain (%)", "dense": "dense gain (%)", "zero-shot": "zero-shot gain (%)"}
SUMMARY = {
    "what": "subject",
    "metric": "metric",
    "best": "best setting",
    "value": "value",
    "base": "base",
    "baseline": "clip-ft",
    "confirmed": "again",
    "noise": "noise",
    "verdict": "best against base",
}  # key in summary.json → heading


@dataclass(frozen=True)
class Trial:
    """One trial.

    Attributes:
        params: name → value; numbers as float.
        objectives: name → value; empty if it did not finish.
        state: ``complete``, or why there is no value.
    """

    run: Record
    name: str
    params: dict[str, float | str]
    objectives: dict[str, float]
    state: str = "complete"

    @property
    def allowed(self) -> bool:
        """Whether it satisfies the sweep's constraint."""
        return self.run.metrics.get("constraint/zero-shot", 0.0) <= 0


@dataclass
class Study:
    """A sweep.

    Attributes:
        directions: objective → +1 (higher is better) or -1.
        varied: parameters with more than one value.
        summary: a row for each objective and task: best, base and clip-ft with the noise of seeds.
        figures: drawn by Optuna.
    """

    name: str
    parent: Record | None
    trials: list[Trial]
    directions: dict[str, int]
    varied: list[str]
    notes: list[str] = field(default_factory=list)
    summary: list[dict[str, Any]] = field(default_factory=list)
    figures: list[Figure] = field(default_factory=list)

    @property
    def complete(self) -> list[Trial]:
        return [trial for trial in self.trials if trial.objectives]

    @property
    def best(self) -> Trial | None:
        """The best trial by the first objective, if possible one that satisfies the constraint."""
        return max(
            self.complete,
            key=lambda trial: (trial.allowed, self.signed(trial)[0]),
            default=None,
        )

    def signed(self, trial: Trial) -> list[float]:
        """A trial's objectives, signed so that higher is better."""
        return [sign * trial.objectives[name] for name, sign in self.directions.items()]

    def front(self) -> list[Trial]:
        """The Pareto front: trials that no other one beats in every objective."""
        values = np.array([self.signed(trial) for trial in self.complete])
        no_worse = np.all(values[:, None] <= values, axis=2)
        beaten = np.any(no_worse & np.any(values[:, None] < values, axis=2), axis=1)
        return [
            trial for trial, is_beaten in zip(self.complete, beaten, strict=True) if not is_beaten
        ]

    @property
    def headline(self) -> str:
        """The sweep's result in a sentence."""
        best, objective = self.best, next(iter(self.directions))
        assert best is not None
        front = f", {len(self.front())} of them on the Pareto front"
        label = OBJECTIVES.get(objective, objective)
        values = [
            f"{parameter_label(name)} {value if isinstance(value, str) else f'{value:g}'}"
            for name, value in best.params.items()
        ]
        return (
            f"{', '.join(values)} is best by {label} ({decimal(best.objectives[objective], 2)}) of"
            f" {len(self.complete)} finished trials{front if len(self.directions) > 1 else ''}"
            f"{self._confirmation(label)}."
        )

    def _confirmation(self, label: str) -> str:
        """The best trial against the base setting on fresh seeds, as the end of a sentence."""
        rows = [row for row in self.summary if not row["metric"]]
        prefix = label.removesuffix(" (%)")
        row = next((row for row in rows if str(row["what"]).startswith(prefix)), {})
        if row.get("best") == "base":
            return ""
        gap = row.get("confirmed")
        change = f"({decimal(gap, 2, True)} to the base setting)" if isinstance(gap, float) else ""
        if row.get("verdict") == "clear":
            return f"; on fresh seeds it is better {change}"
        if row.get("verdict") == "within noise":
            return f"; on fresh seeds the difference is within noise {change}"
        return "; not confirmed on fresh seeds, and the best of many is also the luckiest"


def find_study(store: Store, name: str, experiments: Sequence[str] = ()) -> Study:
    """The study ``name`` in the named experiments or in all.

    Raises:
        TrackingError: it does not exist, or none of its trials is finished.
    """
    searched = list(experiments) or list(store.experiments())
    runs = store.runs(searched, f"tags.study = '{name}'")
    if not runs:
        every = store.runs(searched, "tags.study != ''")
        names = {run.study for run in every}
        raise TrackingError(f"no study {name!r} in the MLflow store; {suggest(name, names)}")
    study = build_study(name, runs, store)
    if not study.complete:
        raise TrackingError(
            f"no trial of study {name!r} is finished; continue the sweep, then report again"
        )
    return study


def build_study(name: str, runs: Sequence[Record], store: Store) -> Study:
    """A study from its runs: its trials, and its own run with summary and figures."""
    parent = next((run for run in reversed(runs) if run.tags.get("stage") == "sweep"), None)
    directions: dict[str, int] = {}
    if parent is not None:
        for pair in parent.tags.get("directions", "").split(","):
            objective, _, sign = pair.rpartition(":")
            directions[objective] = int(sign)
    trials: dict[tuple, Trial] = {}
    for run in sorted(runs, key=lambda run: (run.started, run.run_id)):
        if "trial" not in run.tags or not run.params:
            continue
        values = {
            objective: run.metrics[f"objective/{objective}"]
            for objective in directions
            if f"objective/{objective}" in run.metrics
        }
        complete = run.is_finished and len(values) == len(directions)
        state = "complete" if complete else run.failure
        params = {key: _number(run.params[key]) for key in sorted(run.params)}
        cell = tuple(params.items())
        if complete or cell not in trials or not trials[cell].objectives:
            trials[cell] = Trial(run, run.tags["trial"], params, values if complete else {}, state)
    every = list(trials.values())
    varied = [
        key
        for key in sorted({key for trial in every for key in trial.params})
        if len({trial.params.get(key) for trial in every}) > 1
    ]
    notes = []
    if broken := [trial for trial in every if not trial.objectives]:
        notes.append(
            f"{len(broken)} of {len(every)} trials have no value, the first: {broken[0].state}"
        )
    summary = store.json(parent, "summary.json") if parent else []
    plots = store.json(parent, "plots.json") if parent else []
    figures = [
        Figure(
            f"optuna-{name}-{index}",
            plot["title"],
            "Drawn by Optuna.",
            "the table of trials has its numbers",
            plot["spec"],
            300 + 60 * max(len(varied) - 2, 0),
        )
        for index, plot in enumerate(plots)
    ]
    return Study(name, parent, every, directions, varied, notes, list(summary), figures)


def _number(text: str) -> float | str:
    try:
        return float(text)
    except ValueError:
        return text


def parameter_label(name: str) -> str:
    """A parameter's name for people."""
    return name.replace("lambda_", "λ ")


def study_frame(study: Study) -> pd.DataFrame:
    """A row for each trial, best first, those without a value last.

    Columns: trial, parameters, objectives, state, run.
    """
    front = {trial.run.run_id for trial in study.front()} if len(study.directions) > 1 else set()
    complete = sorted(study.complete, key=lambda trial: (-study.signed(trial)[0], trial.name))
    broken = [trial for trial in study.trials if not trial.objectives]
    names = study.varied or list(study.trials[0].params)
    return pd.DataFrame(
        {
            "trial": trial.name,
            **{parameter_label(name): trial.params.get(name) for name in names},
            **{
                OBJECTIVES.get(name, name): trial.objectives.get(name, math.nan)
                for name in study.directions
            },
            "state": "on the Pareto front" if trial.run.run_id in front else trial.state,
            "run": trial.run.run_id,
        }
        for trial in [*complete, *broken]
    )


def summary_frame(study: Study) -> pd.DataFrame:
    """The sweep's summary with headings, and an arrow at each metric."""
    frame = pd.DataFrame(study.summary)[list(SUMMARY)].rename(columns=SUMMARY)
    frame["metric"] = [
        f"{row['metric']} {'↑' if row['sign'] > 0 else '↓'}" if row["metric"] else ""
        for row in study.summary
    ]
    return frame
