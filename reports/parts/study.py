"""A λ sweep as it is in MLflow: its trials, the best, the heat map and the Pareto front."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from reports.errors import TrackingError, instead
from reports.metrics import OLDER_LOWER
from reports.mlflow.query import ANY, Store, StoredRun, why
from reports.parts.figures import BASE, COLOURS, SYMBOLS, Figure
from reports.parts.provenance import read_json
from reports.parts.tables import number

STUDY_TAG = "study"  # on every run of a sweep; trials have a `trial` too, cells that were run again an `again`
OBJECTIVES = {"gain": "mean gain (%)", "dense": "dense gain (%)", "zero-shot": "zero-shot gain (%)"}
LAMBDAS = ("lambda_clip", "lambda_seg", "lambda_depth", "lambda_normal")  # in this order; others after them
# of a line of summary.json
SUMMARY = ("what", "metric", "sign", "best", "value", "base", "baseline", "confirmed", "noise", "verdict")


@dataclass(frozen=True)
class Trial:
    """One trial: what was varied, and what came out.

    Attributes:
        params: what was varied or held → value; numbers as float.
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
        summary: what the sweep says of each objective and task: best, base and clip-ft with the noise of seeds.
    """

    name: str
    parent: StoredRun | None
    trials: list[Trial]
    directions: dict[str, int]
    varied: list[str]
    notes: list[str] = field(default_factory=list)
    summary: list[dict[str, Any]] = field(default_factory=list)

    @property
    def complete(self) -> list[Trial]:
        return [trial for trial in self.trials if trial.objectives]

    def best(self, objective: str) -> Trial | None:
        """The trial with the best value of an objective, of those that keep the constraint where any does."""
        there = [trial for trial in self.complete if objective in trial.objectives]
        sign = self.directions[objective]
        return max(there, key=lambda trial: (trial.allowed, sign * trial.objectives[objective]), default=None)

    def front(self) -> list[Trial]:
        """Trials that no other one beats in every objective (all of them finite)."""
        names = list(self.directions)
        there = [trial for trial in self.complete if all(name in trial.objectives for name in names)]

        def beats(a: Trial, b: Trial) -> bool:
            gaps = [self.directions[n] * (a.objectives[n] - b.objectives[n]) for n in names]
            return all(gap >= 0 for gap in gaps) and any(gap > 0 for gap in gaps)

        return [trial for trial in there if not any(beats(other, trial) for other in there)]


def find_study(store: Store, name: str, experiments: Sequence[str] = ()) -> Study:
    """The study ``name``, looked for in the named experiments or in all.

    Raises:
        TrackingError: there is none of that name, or none of its trials is finished.
    """
    every = list(experiments) or list(store.experiments())
    mine = store.runs(every, {STUDY_TAG: name})
    if not mine:
        known = {run.tags[STUDY_TAG] for run in store.runs(every, {STUDY_TAG: ANY})}
        raise TrackingError(f"no study {name!r} in the MLflow store; {instead(name, known)}")
    study = build_study(name, mine, store)
    if not study.complete:
        raise TrackingError(f"no trial of study {name!r} is finished; continue the sweep, then report again")
    return study


def build_study(name: str, runs: Sequence[StoredRun], store: Store | None = None) -> Study:
    """A study from its runs: those tagged as trials, and the parent of all, whose summary is read when ``store`` is given."""
    parent = next((run for run in reversed(runs) if run.tags.get("stage") == "sweep"), None)
    told = filter(None, parent.tags.get("directions", "").split(",")) if parent else ()
    directions = {name: -1 if sign == "-1" else 1 for name, _, sign in (one.rpartition(":") for one in told)}
    trials: dict[tuple, Trial] = {}
    replaced = 0
    for run in sorted(runs, key=lambda run: (run.started, run.id)):
        if "trial" not in run.tags or not run.params:
            continue
        values = {k.removeprefix("objective/"): v for k, v in run.metrics.items() if k.startswith("objective/")}
        finished = run.status == "FINISHED" and values
        for key in values:
            directions.setdefault(key, -1 if key.rpartition("/")[2] in OLDER_LOWER else 1)
        state = "complete" if finished else "no value" if run.status == "FINISHED" else why(run)
        params = {key: _number(value) for key, value in run.params.items()}
        trial = Trial(run, run.tags["trial"], params, values if finished else {}, state)
        cell = tuple(sorted(run.params.items()))
        if cell in trials and trials[cell].objectives:
            replaced += 1
            if not trial.objectives:
                continue
        trials[cell] = trial
    found = list(trials.values())
    varied = [n for n in _in_order({n for t in found for n in t.params}) if len({t.params.get(n) for t in found}) > 1]
    notes = [f"{replaced} trials ran the same cell again; the newest finished one counts"] if replaced else []
    if broken := [trial for trial in found if not trial.objectives]:
        notes.append(f"{len(broken)} of {len(found)} trials have no value, the first: {broken[0].state}")
    summed = read_json(store, parent, "summary.json") if store is not None and parent is not None else []
    lines = [line for line in summed if isinstance(line, dict)] if isinstance(summed, list) else []
    rows = [{key: line.get(key) for key in SUMMARY} for line in lines]
    return Study(name, parent, found, directions, varied, notes, rows)


def _number(text: str) -> float | str:
    try:
        return float(text)
    except ValueError:
        return text


def _in_order(names: set[str]) -> list[str]:
    return sorted(names, key=lambda name: (LAMBDAS.index(name) if name in LAMBDAS else len(LAMBDAS), name))


def study_figures(study: Study) -> list[Figure]:
    """Heat maps of each pair of varied λs, each objective against each λ, and the Pareto front of two objectives."""
    figures = []
    objective = next(iter(study.directions))
    pairs = [(a, b) for place, a in enumerate(study.varied) for b in study.varied[place + 1 :]]
    for a, b in pairs[:6]:
        if (heat := _heat_map(study, a, b, objective)) is not None:
            figures.append(heat)
    if study.varied:
        figures.append(_slices(study, objective))
    names = list(study.directions)
    if len(names) > 1:
        figures.append(_pareto(study, names[0], names[1]))
    return figures


def objective_label(name: str) -> str:
    """An objective as people read it."""
    return OBJECTIVES.get(name, name)


def parameter_label(name: str) -> str:
    """A parameter as people read it."""
    return name.replace("lambda_", "λ ")


def _heat_map(study: Study, a: str, b: str, objective: str) -> Figure | None:
    """Best value over all other parameters in each cell of two λs; None unless some λ meets several of the other."""
    sign = study.directions[objective]
    best: dict[tuple, Trial] = {}
    for trial in study.complete:
        if a in trial.params and b in trial.params and objective in trial.objectives:
            key = trial.params[a], trial.params[b]
            if key not in best or sign * trial.objectives[objective] > sign * best[key].objectives[objective]:
                best[key] = trial
    xs, ys = sorted({x for x, _ in best}, key=_order), sorted({y for _, y in best}, key=_order)
    if len(xs) < 2 or len(ys) < 2:
        return None
    z = [[best[x, y].objectives[objective] if (x, y) in best else None for x in xs] for y in ys]
    text = [[number(v, 2) if v is not None else "not tried" for v in row] for row in z]
    data = [
        {
            "type": "heatmap", "x": [value_text(x) for x in xs], "y": [value_text(y) for y in ys], "z": z, "text": text,
            "texttemplate": "%{text}",
            "hovertemplate": f"{parameter_label(a)} %{{x}}, {parameter_label(b)} %{{y}}: %{{text}}<extra></extra>",
            "colorscale": "Viridis", "reversescale": sign < 0, "xgap": 3, "ygap": 3,
            "colorbar": {"title": {"text": objective}, "thickness": 10, "outlinewidth": 0},
        }
    ]  # fmt: skip
    layout = {
        "xaxis": {"type": "category", "title": {"text": parameter_label(a)}, "showgrid": False},
        "yaxis": {"type": "category", "title": {"text": parameter_label(b)}, "showgrid": False},
        "margin": {"l": 56, "r": 8, "t": 8, "b": 46},
    }
    told = "; ".join(
        f"{parameter_label(a)} {value_text(x)}, {parameter_label(b)} {value_text(y)}: {number(t.objectives[objective], 2)}"
        for (x, y), t in best.items()
    )
    title, caption = (
        f"{parameter_label(a)} × {parameter_label(b)}",
        f"{objective_label(objective)}; where other λs vary too, the best of them.",
    )
    return Figure(f"heat-{a}-{b}", title, caption, told, {"data": data, "layout": layout}, 300)


def _slices(study: Study, objective: str) -> Figure:
    """Each λ alone: the trials in which all other parameters are as in the base setting (their most common values)."""
    data, places = [], list[float]()
    base = {n: Counter(t.params[n] for t in study.trials if n in t.params).most_common(1)[0][0] for n in study.varied}
    for place, name in enumerate(study.varied):
        there = sorted(
            (value, t.objectives[objective])
            for t in study.complete
            if isinstance(value := t.params.get(name), float)
            and objective in t.objectives
            and all(t.params.get(other) == base[other] for other in study.varied if other != name)
        )
        places += [x for x, _ in there]
        data.append(
            {
                "type": "scatter", "mode": "lines+markers", "name": parameter_label(name),
                "x": [x for x, _ in there], "y": [y for _, y in there],
                "marker": {"color": COLOURS[place % len(COLOURS)], "symbol": SYMBOLS[place % len(SYMBOLS)], "size": 9},
                "line": {"color": COLOURS[place % len(COLOURS)], "width": 1.4},
                "hovertemplate": f"{parameter_label(name)} %{{x}}: %{{y:.3f}}<extra></extra>",
            }
        )  # fmt: skip
    positive = all(x > 0 for x in places)
    layout = {
        "xaxis": {"title": {"text": "λ"}, "type": "log" if positive else "linear"},
        "yaxis": {"title": {"text": objective_label(objective)}}, "showlegend": True,
        "margin": {"l": 56, "r": 8, "t": 8, "b": 46},
        "legend": {"orientation": "h", "y": 1.0, "yanchor": "bottom", "x": 0},
    }  # fmt: skip
    best = study.best(objective)
    told = f"best {number(best.objectives[objective], 2)} at {settings(best)}" if best else ""
    caption = "One λ moves, all others stay at their most common value."
    return Figure(
        "slices", f"{objective_label(objective)} against each λ", caption, told, {"data": data, "layout": layout}, 300
    )


def _pareto(study: Study, first: str, second: str) -> Figure:
    front = {trial.run.id for trial in study.front()}
    groups = ((False, "dominated", BASE, 7), (True, "Pareto front", COLOURS[0], 10))
    data: list[dict[str, Any]] = []
    for on, name, colour, size in groups:
        there = sorted(
            (
                t
                for t in study.complete
                if (t.run.id in front) == on and first in t.objectives and second in t.objectives
            ),
            key=lambda t: t.objectives[first],
        )
        data.append(
            {
                "type": "scatter", "mode": "lines+markers" if on else "markers", "name": name,
                "x": [t.objectives[first] for t in there], "y": [t.objectives[second] for t in there],
                "text": [settings(t) for t in there], "line": {"color": colour, "dash": "dot", "width": 1.2},
                "marker": {"color": colour, "size": size, "symbol": "diamond" if on else "circle"},
                "hovertemplate": f"%{{text}}<br>{first} %{{x:.3f}}, {second} %{{y:.3f}}<extra></extra>",
            }
        )  # fmt: skip
    layout = {
        "xaxis": {"title": {"text": objective_label(first)}}, "yaxis": {"title": {"text": objective_label(second)}},
        "showlegend": True,
        "margin": {"l": 56, "r": 8, "t": 8, "b": 46}, "legend": {"orientation": "h", "y": 1.0, "yanchor": "bottom", "x": 0},
    }  # fmt: skip
    told = "on the front: " + "; ".join(settings(trial) for trial in study.front())
    caption = "Trials that no other one beats in every objective are on the front."
    return Figure("pareto", "Pareto front", caption, told, {"data": data, "layout": layout}, 340)


def settings(trial: Trial) -> str:
    """A trial's λs in a line."""
    return ", ".join(
        f"{parameter_label(name)} {value_text(trial.params[name])}" for name in _in_order(set(trial.params))
    )


def value_text(value: float | str) -> str:
    """A parameter's value, short."""
    return value if isinstance(value, str) else f"{value:g}"


def _order(value: float | str) -> tuple[bool, float, str]:
    """Numbers by size, then words."""
    return (True, 0.0, value) if isinstance(value, str) else (False, value, "")


def study_rows(study: Study) -> tuple[list[str], list[dict[str, Any]]]:
    """(objectives, a row for each trial, best first, those without a value last)."""
    names = list(study.directions)
    front = {trial.run.id for trial in study.front()} if len(names) > 1 else set()
    leaders = {name: best.run.id for name in names if (best := study.best(name)) is not None}

    def key(trial: Trial) -> tuple:
        value = trial.objectives.get(names[0], math.nan) if names else math.nan
        return (not np.isfinite(value), -study.directions[names[0]] * value if np.isfinite(value) else 0.0, trial.name)

    rows = [
        {
            "trial": trial,
            "values": [trial.objectives.get(name, math.nan) for name in names],
            "best": [leaders.get(name) == trial.run.id for name in names],
            "front": trial.run.id in front,
        }
        for trial in sorted(study.trials, key=key)
    ]
    return names, rows


def _clear(study: Study, objective: str) -> str:
    """How the best trial stood against the base setting on fresh seeds, as the end of a sentence."""
    label = objective_label(objective).removesuffix(" (%)")
    row = next((r for r in study.summary if not r["metric"] and str(r["what"]).startswith(label)), {})
    if row.get("best") == "base":
        return ""
    gap = f"{number(row['confirmed'], 2, True)} to the base setting" if isinstance(row.get("confirmed"), float) else ""
    told = {
        "clear": f"; run again on fresh seeds it is better ({gap})",
        "within noise": f"; run again on fresh seeds the difference is within noise ({gap})",
    }
    return told.get(
        row.get("verdict") or "", "; that was not confirmed on fresh seeds, and the best of many is also the luckiest"
    )


def study_headline(study: Study) -> str:
    """The sweep's result in a sentence."""
    objective = next(iter(study.directions))
    best = study.best(objective)
    assert best is not None
    more = f", {len(study.front())} of them on the Pareto front" if len(study.directions) > 1 else ""
    value = number(best.objectives[objective], 2)
    return (
        f"{settings(best)} is best by {objective_label(objective)} ({value}) of {len(study.complete)} finished "
        f"trials{more}{_clear(study, objective)}."
    )
