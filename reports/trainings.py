"""Scores over the steps of trainings, whose checkpoints are columns: which step is best, whether
scores still rise, and where the order of two trainings changes.

Differences are paired, image by image and seed by seed, at the level at which the report judges its
pairs (``Judgement.level``). What is not decided is not said.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from itertools import combinations, pairwise

from reports.comparison import Analysis
from reports.figures import Figure, cycled_styles, make_layout, points
from reports.selection import AT_STEP, TaskColumn
from reports.statistics import Estimate
from reports.tables import with_interval

Steps = Mapping[int, str]  # step → backbone, in the order of steps


def trainings(backbones: Sequence[str]) -> dict[str, Steps]:
    """Training → its columns, of trainings with several."""
    columns: dict[str, dict[int, str]] = defaultdict(dict)
    for name in backbones:
        if match := AT_STEP.fullmatch(name):
            columns[match[1]][int(match[2])] = name
    return {name: dict(sorted(steps.items())) for name, steps in columns.items() if len(steps) > 1}


def _columns(analysis: Analysis) -> list[TaskColumn]:
    return [column for column in analysis.selection.columns if column.main]


def _scored(analysis: Analysis, column: TaskColumn, steps: Steps) -> dict[int, Estimate]:
    """Step → the main metric, where there is a number."""
    keys = {step: (name, column, column.main) for step, name in steps.items()}
    return {step: analysis.estimates[key] for step, key in keys.items() if key in analysis.samples}


def step_figures(analysis: Analysis) -> list[Figure]:
    """One for each task: the main metric over steps, a line for each training."""
    lines = trainings(analysis.selection.backbones)
    styles = cycled_styles(lines)
    figures: list[Figure] = []
    for column in _columns(analysis):
        metric = column.metric(column.main)
        label = f"{metric.label or column.main}{f' ({metric.unit})' if metric.unit else ''}"
        data, alt = [], []
        for name, steps in lines.items():
            scored = _scored(analysis, column, steps)
            if len(scored) < 2:
                continue
            text = [f"{with_interval(each, 2)} at step {step}" for step, each in scored.items()]
            hover = [f"{name}: {words}" for words in text]
            line = points(name, styles[name], [*scored.values()], [*scored], hover)
            data.append({**line, "mode": "lines+markers", "line": {"color": styles[name].colour}})
            alt.append(f"{name}: {', '.join(text)}")
        if not data:
            continue
        better = "higher" if metric.direction > 0 else "lower"
        caption = f"{label} by step of training, {better} is better; separate 95 % intervals."
        layout = make_layout({"title": "step"}, {"title": label}, legend=True)
        spec = {"data": data, "layout": layout}
        name = f"steps-{len(figures)}"
        figures.append(Figure(name, column.title, caption, "; ".join(alt), spec, 300))
    return figures


def step_lines(analysis: Analysis) -> list[str]:
    """What the curves show beyond doubt, a sentence each."""
    lines = trainings(analysis.selection.backbones)
    return [
        *(
            _course(analysis, column, name, steps)
            for name, steps in lines.items()
            for column in _columns(analysis)
            if len(_scored(analysis, column, steps)) > 1
        ),
        *(
            sentence
            for training, rival in combinations(lines.items(), 2)
            for column in _columns(analysis)
            for sentence in _crossings(analysis, column, training, rival)
        ),
    ]


def _course(analysis: Analysis, column: TaskColumn, training: str, steps: Steps) -> str:
    """The best step of a training, and how its scores move at the end."""
    scored = _scored(analysis, column, steps)
    sign = column.metric(column.main).direction
    best = max(scored, key=lambda step: sign * scored[step].value)
    *_, before, last = scored
    rise = analysis.lead(steps[last], steps[before], column, column.main)
    sentence = (
        f"{training} · {column.title}: best at step {best} ({with_interval(scored[best], 1)})"
    )
    if rise.verdict() == "win":
        return f"{sentence}, still rising: {with_interval(rise, 1, True)} since step {before}."
    if best != last:
        fall = analysis.lead(steps[last], steps[best], column, column.main)
        if fall.verdict() == "loss":
            return f"{sentence}, falling since: {with_interval(fall, 1, True)} at step {last}."
        return f"{sentence}; that scores fall since is undecided."
    return f"{sentence}; that they rise since step {before} is undecided."


def _crossings(
    analysis: Analysis, column: TaskColumn, training: tuple[str, Steps], rival: tuple[str, Steps]
) -> Iterator[str]:
    """Where the order of two trainings changes: between two of their common steps with verdicts."""
    (first, own), (second, rivals) = training, rival
    leads: list[tuple[int, str]] = []
    common = _scored(analysis, column, own).keys() & _scored(analysis, column, rivals).keys()
    for step in sorted(common):
        verdict = analysis.lead(own[step], rivals[step], column, column.main).verdict()
        if verdict in ("win", "loss"):
            leads.append((step, first if verdict == "win" else second))
    for (step, leader), (next_step, next_leader) in pairwise(leads):
        if leader != next_leader:
            yield (
                f"{column.title}: {leader} is ahead at step {step}, {next_leader} at step"
                f" {next_step}: their order changes between."
            )
