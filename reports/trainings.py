"""Trainings: scores over the steps of those whose checkpoints are columns – which step is best,
whether scores still rise, and where the order of two trainings changes – and losses of the heads
that were trained on frozen backbones, of which some were trained too short.

Differences are paired, image by image and seed by seed, at the level at which the report judges its
pairs (``Judgement.level``). What is not decided is not said.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations, pairwise

import numpy as np

from reports.comparison import Analysis
from reports.figures import Figure, Style, cycled_styles, make_layout, points
from reports.records import TRAIN_LOSS
from reports.selection import AT_STEP, TaskColumn
from reports.statistics import Estimate
from reports.store import Store
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
        return f"{sentence}; whether scores fall since is undecided."
    return f"{sentence}; whether scores rise since step {before} is undecided."


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


@dataclass(frozen=True)
class HeadCurve:
    """The training loss of a head, of a backbone's first seed."""

    backbone: str
    column: TaskColumn
    steps: Sequence[int]
    losses: Sequence[float]

    def fall(self) -> str:
        """How the loss fell in the last fifth of the training, if it did beyond its noise (Welch's
        t against the fifth before) and by more than ``STILL_LEARNING`` of its whole fall, so that
        more steps would lower it further; else ''."""
        values, size = np.array(self.losses), len(self.losses) // 5
        if size < 5:
            return ""
        before, last = values[-2 * size : -size], values[-size:]
        fall = before.mean() - last.mean()
        noise = np.sqrt((before.var(ddof=1) + last.var(ddof=1)) / size)
        if fall <= BEYOND_NOISE * noise or fall <= STILL_LEARNING * (values[0] - last.mean()):
            return ""
        return f"{before.mean():.3g} → {last.mean():.3g}"


BEYOND_NOISE = 2.33  # one-sided 1 %
STILL_LEARNING = 0.05


def head_curves(store: Store, analysis: Analysis) -> list[HeadCurve]:
    """Of all heads whose losses were logged."""
    curves = []
    for (name, column), cells in analysis.selection.cells.items():
        if cells[0].train_loss is not None:
            steps, losses = store.history(cells[0].run_id, TRAIN_LOSS)
            curves.append(HeadCurve(name, column, steps, losses))
    return curves


def short_trainings(curves: Sequence[HeadCurve]) -> list[str]:
    """A sentence on heads that were still learning when their training ended."""
    falls: dict[str, list[str]] = defaultdict(list)
    for curve in curves:
        if fall := curve.fall():
            falls[curve.column.title].append(f"{curve.backbone} {fall}")
    listed = [f"{title} ({', '.join(names)})" for title, names in falls.items()]
    if not listed:
        return []
    return [
        "Heads that were still learning at the end, their loss in the last fifth of the training:"
        f" {'; '.join(listed)}. Too few steps look like weak features: try more (max_iters or"
        " epochs)."
    ]


def settings_at_edge(analysis: Analysis) -> list[str]:
    """A sentence on heads whose setting, chosen on held-out images, is the first or last of its
    grid."""
    names: dict[str, list[str]] = defaultdict(list)
    for (name, column), cells in analysis.selection.cells.items():
        if any(cell.at_edge for cell in cells):
            names[column.title].append(name)
    listed = [f"{title} ({', '.join(each)})" for title, each in names.items()]
    if not listed:
        return []
    return [
        f"Heads whose setting was chosen at the edge of its grid: {'; '.join(listed)}. A better one"
        " may lie beyond it: widen the grid (`list settings TASK` names it)."
    ]


def head_figures(curves: Sequence[HeadCurve], styles: Mapping[str, Style]) -> list[Figure]:
    """One for each task: the loss of each backbone's head."""
    by_column: dict[TaskColumn, list[HeadCurve]] = defaultdict(list)
    for curve in curves:
        by_column[curve.column].append(curve)
    figures: list[Figure] = []
    for column, lines in by_column.items():
        data, ends = [], []
        for curve in lines:
            name = curve.backbone
            stride = max(1, len(curve.steps) // SHOWN_POINTS)
            ends.append(f"{name} ends at {curve.losses[-1]:.4g}")
            data.append(
                {
                    "type": "scatter",
                    "mode": "lines",
                    "name": name,
                    "x": curve.steps[::stride],
                    "y": [float(f"{value:.4g}") for value in curve.losses[::stride]],
                    "line": {"color": styles[name].colour, "width": 1.4},
                    "hovertemplate": f"{name}: %{{y:.4g}} at step %{{x}}<extra></extra>",
                }
            )
        spec = {"data": data, "layout": make_layout({"title": "step"}, {"rangemode": "tozero"})}
        name, caption = f"head-loss-{len(figures)}", "Training loss of the head; the first seed."
        figures.append(Figure(name, column.title, caption, ", ".join(ends), spec, 220))
    return figures


SHOWN_POINTS = 80
