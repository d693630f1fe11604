"""Curves: training losses, and a task's metric against the share of train or the shots."""

from __future__ import annotations

from typing import Any

from reports.analysis import Analysis
from reports.mlflow.query import Store
from reports.parts.figures import Figure, describe, looks, make_layout, points
from reports.selection import TaskProtocol

MOST_CURVES = 40  # each is a request to the store


def training_curves(store: Store, analysis: Analysis) -> list[Figure]:
    """The contrastive loss of every backbone's training."""
    selection, style = analysis.selection, looks(analysis)
    data, ends = [], []
    for (name, seed), parent in list(selection.parents.items())[:MOST_CURVES]:
        run = selection.runs.get(parent.tags.get("train.run", ""))
        metrics = run.metrics if run else {}
        metric = next((m for m in ("train/loss_clip", "train/loss") if m in metrics), None)
        if run is None or metric is None:
            continue
        label = f"{name}, seed {seed}"
        steps, values = store.history(run.id, metric)
        ends.append(f"{label} ends at {values[-1]:.4g}")
        data.append(
            {
                "type": "scatter",
                "mode": "lines" if len(steps) > 1 else "markers",
                "name": label,
                "x": steps,
                "y": [float(f"{value:.5g}") for value in values],
                "line": {"color": style[name].colour, "width": 1.4},
                "hovertemplate": f"{label}: %{{y:.4g}} at step %{{x}}<extra></extra>",
            }
        )
    if not data:
        return []
    layout = make_layout({"title": "step"}, {"rangemode": "tozero"})
    title, caption = "Training of the backbones", "Contrastive loss; a line for each seed."
    spec = {"data": data, "layout": layout}
    return [Figure("train-loss", title, caption, ", ".join(ends), spec, 220)]


def learning_curves(analysis: Analysis) -> list[Figure]:
    """One for each task that ran with several shares of train, or several numbers of shots."""
    selection = analysis.selection
    tasks: dict[str, dict[float, TaskProtocol]] = {}
    with_shots = set()
    for column in selection.columns:
        cells = selection.column_cells(column)
        if cells and column.letter in ("", "A"):
            params = cells[0].run.params
            share = float(params.get("shots") or params.get("train_share") or 1)
            tasks.setdefault(column.base, {})[share] = column
            if "shots" in params:
                with_shots.add(column.base)
    return [
        _learning_curve(analysis, f"learning-{index}", task, columns, task in with_shots)
        for index, (task, columns) in enumerate(tasks.items())
        if len(columns) > 1
    ]


def _learning_curve(
    analysis: Analysis, name: str, task: str, columns: dict[float, TaskProtocol], shots: bool
) -> Figure:
    style, shares = looks(analysis), sorted(columns)
    largest = columns[shares[-1]]
    metric, main = largest.metric(largest.main), largest.main
    ticks = {share: f"{share:g}" if shots else f"{100 * share:g} %" for share in shares}
    data: list[dict[str, Any]] = []
    alt = []
    for backbone in analysis.selection.backbones:
        estimates = {
            share: analysis.estimates[backbone, columns[share], main]
            for share in shares
            if (backbone, columns[share], main) in analysis.estimates
        }
        if not estimates:
            continue
        text = [f"{describe(e, 2)} at {ticks[share]}" for share, e in estimates.items()]
        alt.append(f"{backbone}: {', '.join(text)}")
        hover = [f"{backbone}: {words}" for words in text]
        line = points(backbone, style[backbone], [*estimates.values()], [*estimates], hover)
        data.append({**line, "mode": "lines+markers"})
    axis = "training images of each class" if shots else "share of train"
    label = f"{metric.label or main}{f' ({metric.unit})' if metric.unit else ''}"
    better = "higher" if metric.direction > 0 else "lower"
    layout = make_layout(
        {
            "type": "log",
            "title": f"{axis}, log",
            "tickvals": shares,
            "ticktext": list(ticks.values()),
        },
        {"title": label},
        legend=True,
    )
    caption = f"{label} by {axis}, {better} is better; separate 95 % intervals."
    return Figure(name, task, caption, "; ".join(alt), {"data": data, "layout": layout}, 300)
