"""Figures of a report as plain Plotly JSON (``{"data", "layout"}``): building them needs no import
of plotly.

Colours are names of the page's own variables (``var:text`` …), resolved in the browser, so that a
figure follows light and dark.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from reports.analysis import Analysis, shared_columns
from reports.mlflow.query import Store, StoredRun
from reports.parts.tables import ACROSS, MetricColumn, interval, number, overview
from reports.selection import TaskProtocol

# Okabe and Ito's colours for all kinds of colour vision, the dark blue first; the baseline is grey.
COLOURS = (
    "#0072B2",
    "#D55E00",
    "#009E73",
    "#CC79A7",
    "#E69F00",
    "#56B4E9",
    "#8C6BB1",
    "#A6761D",
    "#666A2E",
    "#C0392B",
)
SYMBOLS = (
    "circle",
    "square",
    "diamond",
    "triangle-up",
    "cross",
    "star",
    "hexagon",
    "triangle-down",
    "pentagon",
    "x",
)
# of the first ten others, the next ten …: no two backbones look alike
DASHES = ("solid", "dash", "dot", "dashdot", "longdash", "longdashdot")
PATTERNS = ("", "/", "x", "-", "+", ".")
BASE = "#8A8F98"
LEGEND = {"orientation": "h", "yanchor": "bottom", "y": 1.0, "x": 0, "xanchor": "left"}
FEW = 40  # tasks × backbones × seeds of training curves at most: each is a request


@dataclass(frozen=True)
class Figure:
    """A figure with what a reader who cannot see it is told.

    Attributes:
        id, title, caption: ``caption`` says what to look for.
        alt: the figure in words.
        spec: Plotly JSON.
        height: pixels.
    """

    id: str
    title: str
    caption: str
    alt: str
    spec: dict[str, Any]
    height: int = 340


@dataclass(frozen=True)
class Look:
    """How a backbone looks all over a report: on points, on lines and on bars."""

    colour: str
    symbol: str
    dash: str
    pattern: str


def looks(analysis: Analysis) -> dict[str, Look]:
    """Backbone → its look. Each ten have the same colours, but other symbols, dashes and
    patterns."""
    others = [name for name in analysis.selection.backbones if name != analysis.selection.baseline]
    found = {analysis.selection.baseline: Look(BASE, "circle", "solid", "")}
    for place, name in enumerate(others):
        turn, colour = divmod(place, len(COLOURS))
        symbol = SYMBOLS[(colour + 1 + turn) % len(SYMBOLS)]
        found[name] = Look(
            COLOURS[colour], symbol, DASHES[turn % len(DASHES)], PATTERNS[turn % len(PATTERNS)]
        )
    return found


def forest(analysis: Analysis) -> Figure | None:
    """The gain over the baseline in each task, with interval: what is decided and what is not, at
    one look."""
    selection = analysis.selection
    others = [name for name in selection.backbones if name in analysis.gains]
    columns = [c for c in selection.columns if any((b, c) in analysis.task_gains for b in others)]
    if not others or not columns:
        return None
    labels = [*reversed([column.title for column in columns]), "mean gain"]
    rows = {label: place for place, label in enumerate(labels)}
    paint = looks(analysis)
    data = []
    for place, name in enumerate(others):
        shift = 0.5 * ((place + 0.5) / len(others) - 0.5)
        points = [
            (c.title, analysis.task_gains[name, c])
            for c in columns
            if (name, c) in analysis.task_gains
        ]
        points.append(("mean gain", analysis.gains[name].typical))
        data.append(
            {
                "type": "scatter",
                "mode": "markers",
                "name": name,
                "x": [p.value for _, p in points],
                "y": [rows[label] - shift for label, _ in points],
                "error_x": bars([p for _, p in points], paint[name].colour),
                "marker": marker(paint[name], [p.known for _, p in points], 8),
                "text": [
                    f"{label}<br>{name}: {number(p.value, 1, True)} %"
                    f" {interval(p.low, p.high, 1, True) or 'no interval'}"
                    for label, p in points
                ],
                "hovertemplate": "%{text}<extra></extra>",
            }
        )
    # One wild interval must not squeeze all others: the axis holds the values and reasonable arms,
    # longer ones run out of it.
    values = np.array(
        [g.value for g in analysis.task_gains.values()]
        + [gain.typical.value for gain in analysis.gains.values()]
    )
    arms = [
        x
        for g in analysis.task_gains.values()
        if g.known
        for x in (g.low - g.value, g.high - g.value)
    ]
    reach = (
        min(2.5 * float(np.median(np.abs(arms))), max(2 * float(np.abs(values).max()), 20.0))
        if arms
        else 1.0
    )
    low, high = min(values.min() - reach, 0), max(values.max() + reach, 0)
    pad = 0.04 * (high - low) or 1.0
    layout = {
        "xaxis": {
            "title": {"text": f"gain over {selection.baseline} (%)"},
            "range": [low - pad, high + pad],
            "zeroline": False,
        },
        "yaxis": {
            "tickvals": list(rows.values()),
            "ticktext": list(rows),
            "range": [-0.6, len(rows) - 0.4],
            "zeroline": False,
            "showgrid": False,
        },
        "shapes": [
            {
                "type": "line",
                "x0": 0,
                "x1": 0,
                "y0": 0,
                "y1": 1,
                "yref": "paper",
                "line": {"color": "var:muted", "width": 1.2},
            },
            {
                "type": "line",
                "x0": 0,
                "x1": 1,
                "xref": "paper",
                "y0": len(rows) - 1.5,
                "y1": len(rows) - 1.5,
                "line": {"color": "var:line", "width": 1},
            },
        ],
        "margin": {"l": 10, "r": 12, "t": 8, "b": 46},
        "showlegend": len(others) > 1,
        "legend": LEGEND,
    }
    told = "; ".join(
        f"{name}: "
        + ", ".join(
            f"{c.title} {number(analysis.task_gains[name, c].value, 1, True)} %"
            for c in columns
            if (name, c) in analysis.task_gains
        )
        for name in others
    )
    return Figure(
        "forest",
        f"Gain over {selection.baseline}, task by task",
        "Change of each task's main metric in percent of the baseline's, turned so that right is"
        " better; all intervals hold together at 95 %. The interval contains zero where a bar"
        " crosses the line; a long bar leaves the picture; an open mark has no interval.",
        told,
        {"data": data, "layout": layout},
        130 + max(len(rows) * (16 + 13 * len(others)), 120),
    )


def _ticks(names: Sequence[str], most: int = 20) -> dict[str, Any]:
    """Names on an axis, long ones without their middle."""
    short = [n if len(n) <= most else f"{n[: most // 2 - 1]}…{n[-most // 2 :]}" for n in names]
    return {"tickvals": list(names), "ticktext": short}


def marker(look: Look, known: Sequence[bool], size: int) -> dict[str, Any]:
    """A point without an interval is open."""
    return {
        "color": look.colour,
        "symbol": [look.symbol + "-open" * (not one) for one in known],
        "size": size,
    }


def task_bars(analysis: Analysis) -> list[Figure]:
    """One small bar chart for each task."""
    paint = looks(analysis)
    figures = []
    for place, head in enumerate(overview(analysis).heads):
        key = [(b, (b, head.column, head.metric)) for b in analysis.selection.backbones]
        there = [(b, analysis.estimates[k]) for b, k in key if k in analysis.estimates]
        if not there:
            continue
        figures.append(_bar_chart(f"bars-{place}", head, there, paint))
    return figures


def _bar_chart(
    name: str, head: MetricColumn, there: Sequence[tuple[str, Any]], paint: dict[str, Look]
) -> Figure:
    unit = f" ({head.unit})" if head.unit else ""
    better = "more is better" if head.sign > 0 else "less is better"
    told = [
        f"{number(e.value, head.digits)} {interval(e.low, e.high, head.digits) or 'no interval'}"
        for _, e in there
    ]
    data = [
        {
            "type": "bar",
            "x": [b for b, _ in there],
            "y": [e.value for _, e in there],
            "marker": {
                "color": [paint[b].colour for b, _ in there],
                "pattern": {"shape": [paint[b].pattern for b, _ in there], "size": 6},
                "opacity": [1.0 if e.known else 0.45 for _, e in there],
            },
            "error_y": bars([e for _, e in there], "var:text"),
            "text": told,
            "textposition": "none",
            "hovertemplate": "%{x}: %{text}<extra></extra>",
            "width": 0.62,
        }
    ]
    slanted = len(there) > 3 or sum(min(len(b), 20) for b, _ in there) > 24
    highest = max((e.high if e.known else e.value) for _, e in there)
    middle = max(e.value for _, e in there)
    layout: dict[str, Any] = {
        "yaxis": {
            "title": {"text": ""},
            "range": [0, 1.08 * min(max(highest, middle), 3 * middle or 1)],
            "nticks": 5,
        },
        "xaxis": {
            "tickangle": -30 if slanted else 0,
            "showgrid": False,
            **_ticks([b for b, _ in there]),
        },
        "margin": {"l": 40, "r": 6, "t": 6, "b": 60 if slanted else 30},
        "showlegend": False,
    }
    if min(e.value for _, e in there) < 0:
        layout["yaxis"].pop("range")
    return Figure(
        name,
        head.column.title,
        f"{head.words}{unit},"
        f" {better}{'' if all(e.known for _, e in there) else '; pale: no interval'}",
        ", ".join(f"{b} {t}" for (b, _), t in zip(there, told, strict=True)),
        {"data": data, "layout": layout},
        210,
    )


def costs(analysis: Analysis) -> dict[str, dict[str, float]]:
    """Backbone → seconds of experts, labelling, training and probing, means over its seeds.

    Probing is summed over the tasks that all backbones have, so that who lacks a task does not look
    cheap; of several protocols of a task the mean counts.
    """
    found: dict[str, dict[str, float]] = {}
    names = {
        "experts": "experts_seconds",
        "labelling": "label_seconds",
        "training": "train_seconds",
    }
    for name in analysis.selection.backbones:
        parents = [
            run for (backbone, _), run in analysis.selection.parents.items() if backbone == name
        ]
        parts = {
            what: float(np.mean(values))
            for what, key in names.items()
            if (
                values := [
                    run.metrics[f"cost/{key}"] for run in parents if f"cost/{key}" in run.metrics
                ]
            )
        }
        probing: dict[str, list[float]] = {}
        for column in shared_columns(analysis, analysis.selection.backbones):
            seconds = [
                c.cost["seconds"]
                for c in analysis.selection.cells[name, column]
                if "seconds" in c.cost
            ]
            if seconds:
                probing.setdefault(column.task, []).append(float(np.mean(seconds)))
        if probing:
            parts["probing"] = float(sum(map(np.mean, probing.values())))
        if parts:
            found[name] = parts
    return found


def efficiency(analysis: Analysis, name: str) -> str:
    """``; 86.4 M parameters, 17.5 GFLOPs and 5.9 images/s at its own size`` of a backbone, empty
    where it was not measured."""
    keys = ("cost/parameters", "cost/flops_per_image", "cost/images_per_second")
    measured = [
        m
        for (backbone, _), run in analysis.selection.parents.items()
        if backbone == name and (m := run.metrics)
    ]
    told = [
        [metrics[key] for key in keys]
        for metrics in measured
        if all(key in metrics for key in keys)
    ]
    if not told:
        return ""
    parameters, flops, speed = np.mean(told, axis=0)
    return (
        f"; {parameters / 1e6:.1f} M parameters, {flops / 1e9:.1f} GFLOPs and {speed:.1f} images/s"
        " at its own size"
    )


def gain_against_cost(analysis: Analysis) -> Figure | None:
    """What a gain costs: mean relative gain against the seconds of experts, labels, training and
    probing."""
    spent = costs(analysis)
    there = [
        b
        for b in analysis.selection.backbones
        if b in spent and (b in analysis.gains or b == _base(analysis))
    ]
    if len(there) < 2:
        return None
    paint = looks(analysis)
    data, few = [], len(there) <= ACROSS
    for name in there:
        gain = analysis.gains[name].typical if name in analysis.gains else None
        parts = ", ".join(f"{what} {_seconds(value)}" for what, value in spent[name].items())
        value = gain.value if gain else 0.0
        data.append(
            {
                "type": "scatter",
                "mode": "markers+text" if few else "markers",
                "name": name,
                "x": [sum(spent[name].values())],
                "y": [value],
                "error_y": bars([gain], paint[name].colour) if gain else {"visible": False},
                "marker": marker(paint[name], [gain is None or gain.known], 11),
                "text": [name],
                "textposition": "middle right",
                "cliponaxis": False,
                "hovertemplate": (
                    f"{name}: {number(value, 1, True)}"
                    f" %<br>{parts}{efficiency(analysis, name)}<extra></extra>"
                ),
            }
        )
    layout = {
        "xaxis": {"type": "log", "title": {"text": "seconds, log"}},
        "yaxis": {
            "title": {"text": f"gain over {_base(analysis)} (%)"},
            "zerolinecolor": "var:muted",
        },
        "margin": {"l": 56, "r": 70 if few else 12, "t": 10, "b": 46},
        "showlegend": not few,
        "legend": LEGEND,
    }
    told = "; ".join(
        f"{name}: {_seconds(sum(spent[name].values()))}{efficiency(analysis, name)}"
        for name in there
    )
    caption = (
        "Mean gain against what was spent on it here: experts, labels, training and probing (of the"
        " tasks that all have), means over seeds. Up and left is better. What weights cost that"
        " were made elsewhere is not known, and is not in it."
    )
    return Figure("cost", "Gain against cost", caption, told, {"data": data, "layout": layout})


def cost_parts(analysis: Analysis) -> Figure | None:
    """Where the seconds went."""
    spent = costs(analysis)
    if not spent:
        return None
    names = list(reversed([name for name in analysis.selection.backbones if name in spent]))
    shades = {
        "experts": "#B07AA1",
        "labelling": "#E6A84B",
        "training": "#4C86B8",
        "probing": "#8FB7A3",
    }
    data = [
        {
            "type": "bar",
            "orientation": "h",
            "name": part,
            "y": names,
            "x": [spent[n].get(part, 0) for n in names],
            "marker": {"color": shade},
            "hovertemplate": "%{y}: " + part + " %{x:.1f} s<extra></extra>",
            "width": 0.55,
        }
        for part, shade in shades.items()
        if any(spent[n].get(part) for n in names)
    ]
    layout = {
        "barmode": "stack",
        "xaxis": {"title": {"text": "seconds"}},
        "yaxis": {"showgrid": False, "automargin": True, **_ticks(names)},
        "margin": {"l": 10, "r": 12, "t": 10, "b": 46},
        "legend": LEGEND,
        "showlegend": True,
    }
    told = "; ".join(
        f"{n}: " + ", ".join(f"{p} {_seconds(v)}" for p, v in spent[n].items()) for n in spent
    )
    caption = (
        "Seconds of each part, means over seeds; probing is the sum over the tasks that all have."
    )
    return Figure(
        "cost-parts",
        "Where the time went",
        caption,
        told,
        {"data": data, "layout": layout},
        130 + 42 * len(names),
    )


def training_curves(
    store: Store, analysis: Analysis, advance: Callable[[], None] = lambda: None
) -> list[Figure]:
    """The loss of every backbone's training, and of every task's probe (first seed); few enough
    requests to stay quick."""
    figures = []
    runs: list[tuple[str, int, StoredRun]] = []
    for (name, seed), parent in analysis.selection.parents.items():
        run = analysis.selection.runs.get(parent.tags.get("train.run", ""))
        if run is not None and "train/loss" in run.metrics:
            runs.append((name, seed, run))
    paint = looks(analysis)
    if runs:
        data = []
        for name, seed, run in runs[:FEW]:
            metric = "train/loss_clip" if "train/loss_clip" in run.metrics else "train/loss"
            data.append(_curve(store, run, metric, name, paint[name], seed))
        figures.append(
            _curves(
                "train-loss",
                "Training of the backbones",
                "Contrastive loss; one line a seed.",
                data,
            )
        )
        advance()
    columns = _with_curves(analysis)
    most = max(1, FEW // max(1, len(analysis.selection.backbones)))
    left = (
        f" Of {len(columns)} tasks the first {most} are drawn; the others are in MLflow."
        if len(columns) > most
        else ""
    )
    for place, column in enumerate(columns[:most]):
        data = []
        for name in analysis.selection.backbones:
            cell = next(iter(analysis.selection.cells.get((name, column), [])), None)
            if cell is not None and "train/loss" in cell.run.metrics:
                data.append(_curve(store, cell.run, "train/loss", name, paint[name], cell.seed))
        if data:
            caption = "Loss of the probe, first seed." + (left if place == most - 1 else "")
            figures.append(_curves(f"probe-loss-{place}", column.title, caption, data))
        advance()
    return figures


def _with_curves(analysis: Analysis) -> list[TaskProtocol]:
    cells = analysis.selection.cells
    return [
        c
        for c in analysis.selection.columns
        if any(
            "train/loss" in cell.run.metrics
            for b in analysis.selection.backbones
            for cell in cells.get((b, c), [])[:1]
        )
    ]


def _curve(
    store: Store, run: StoredRun, metric: str, name: str, look: Look, seed: int
) -> dict[str, Any]:
    steps, values = store.history(run.id, metric)
    return {
        "type": "scatter",
        "mode": "lines" if len(steps) > 1 else "markers",
        "name": name,
        "legendgroup": name,
        "x": steps,
        "y": [float(f"{v:.5g}") for v in values],
        "line": {"color": look.colour, "dash": look.dash, "width": 1.4},
        "marker": {"color": look.colour, "symbol": look.symbol},
        "hovertemplate": f"{name}, seed {seed}: %{{y:.4g}} at step %{{x}}<extra></extra>",
    }


def _curves(
    name: str, title: str, caption: str, data: list[dict[str, Any]], height: int = 220
) -> Figure:
    layout = {
        "xaxis": {"title": {"text": "step"}},
        "yaxis": {"rangemode": "tozero"},
        "margin": {"l": 36, "r": 8, "t": 8, "b": 40},
        "showlegend": False,
    }
    ends = ", ".join(f"{one['name']} ends at {one['y'][-1]:.4g}" for one in data if one["y"])
    return Figure(name, title, caption, ends, {"data": data, "layout": layout}, height)


def bars(estimates: Sequence[Any], colour: str) -> dict[str, Any]:
    """Plotly's asymmetric error bars."""
    return {
        "type": "data",
        "symmetric": False,
        "color": colour,
        "thickness": 1.4,
        "width": 4,
        "array": [
            e.high - e.value if e.known else None for e in estimates
        ],  # none is drawn: no interval is not one of width 0
        "arrayminus": [e.value - e.low if e.known else None for e in estimates],
    }


def _base(analysis: Analysis) -> str:
    return analysis.selection.baseline


def _seconds(value: float) -> str:
    if value < 90:
        return f"{value:.1f} s"
    return f"{value / 60:.1f} min" if value < 5400 else f"{value / 3600:.1f} h"
