"""Curves of label efficiency: a task's main metric against the share of train, or the shots, of its
variants."""

from __future__ import annotations

from typing import Any

from reports.analysis import Analysis
from reports.mlflow.query import StoredRun
from reports.parts.figures import LEGEND, Figure, bars, looks, marker
from reports.parts.tables import interval, number
from reports.selection import TaskProtocol


def learning_curves(analysis: Analysis) -> list[Figure]:
    """One for each task that was run with several shares of train, or several numbers of shots."""
    selection = analysis.selection
    found: dict[str, dict[float, TaskProtocol]] = {}
    shots = set()
    for column in selection.columns:
        cell = next(
            (cells[0] for b in selection.backbones if (cells := selection.cells.get((b, column)))),
            None,
        )
        if cell is None or column.letter not in ("", "A"):
            continue
        found.setdefault(column.base, {})[_place(cell.run)] = column
        shots |= {column.base} if "shots" in cell.run.params else set()
    several = {task: columns for task, columns in found.items() if len(columns) > 1}
    return [
        _curve(analysis, n, task, columns, task in shots)
        for n, (task, columns) in enumerate(several.items())
    ]


def _place(run: StoredRun) -> float:
    return float(run.params.get("shots") or run.params.get("train_share") or 1)


def _curve(
    analysis: Analysis, place: int, task: str, columns: dict[float, TaskProtocol], shots: bool
) -> Figure:
    paint, places = looks(analysis), sorted(columns)
    main = columns[places[-1]].main
    metric, words = (
        columns[places[-1]].metric(main),
        [f"{x:g}" if shots else f"{100 * x:g} %" for x in places],
    )
    data: list[dict[str, Any]] = []
    told = []
    for name in analysis.selection.backbones:
        keys = [(x, word, (name, columns[x], main)) for x, word in zip(places, words, strict=True)]
        there = [
            (x, word, analysis.estimates[key]) for x, word, key in keys if key in analysis.estimates
        ]
        if not there:
            continue
        estimates = [one for *_, one in there]
        said = [
            f"{number(e.value, 2)} {interval(e.low, e.high, 2) or '(no interval)'} at {w}"
            for _, w, e in there
        ]
        data.append(
            {
                "type": "scatter",
                "mode": "lines+markers",
                "name": name,
                "x": [x for x, *_ in there],
                "y": [one.value for one in estimates],
                "error_y": bars(estimates, paint[name].colour),
                "line": {"color": paint[name].colour, "dash": paint[name].dash},
                "marker": marker(paint[name], [one.known for one in estimates], 8),
                "text": [f"{name}: {one}" for one in said],
                "hovertemplate": "%{text}<extra></extra>",
            }
        )
        told.append(f"{name}: {', '.join(said)}")
    axis = "training images of each class" if shots else "share of train"
    unit, better = (
        f" ({metric.unit})" if metric.unit else "",
        "more" if metric.direction > 0 else "less",
    )
    layout = {
        "xaxis": {
            "type": "log",
            "title": {"text": f"{axis}, log"},
            "tickvals": places,
            "ticktext": words,
        },
        "yaxis": {"title": {"text": f"{metric.label or main}{unit}"}},
        "margin": {"l": 50, "r": 12, "t": 8, "b": 46},
        "showlegend": True,
        "legend": LEGEND,
    }
    caption = (
        f"{metric.label or main}{unit} by {axis}, {better} is better; 95 % intervals, each by"
        " itself."
    )
    return Figure(
        f"learning-{place}", task, caption, "; ".join(told), {"data": data, "layout": layout}, 300
    )
