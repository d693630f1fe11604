"""Figures of a report as plain Plotly JSON (``{"data", "layout"}``), built without plotly.

Colours like ``var:text`` are variables of the page, resolved in the browser, so that a figure
follows its light or dark theme.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from reports.analysis import Analysis
from reports.parts.tables import MetricColumn, interval, number, overview
from reports.stats.intervals import Estimate

# Okabe and Ito's colours, distinct in all kinds of colour vision; the baseline is grey.
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
BASELINE_COLOUR = "#8A8F98"
SYMBOLS = ("square", "diamond", "triangle-up", "cross", "star", "hexagon", "triangle-down", "x")
LEGEND = {"orientation": "h", "yanchor": "bottom", "y": 1.0, "x": 0, "xanchor": "left"}


@dataclass(frozen=True)
class Figure:
    """A figure and its text.

    Attributes:
        caption: what it shows and how to read it.
        alt: its content in words, for readers who cannot see it.
        spec: Plotly JSON.
        height: in pixels.
    """

    id: str
    title: str
    caption: str
    alt: str
    spec: dict[str, Any]
    height: int = 340


@dataclass(frozen=True)
class Look:
    """The colour and symbol of a backbone in all figures."""

    colour: str
    symbol: str


def looks(analysis: Analysis) -> dict[str, Look]:
    """Backbone → its look; colours repeat after ten backbones, colour and symbol after forty."""
    baseline = analysis.selection.baseline
    result = {baseline: Look(BASELINE_COLOUR, "circle")}
    compared = [name for name in analysis.selection.backbones if name != baseline]
    for index, name in enumerate(compared):
        result[name] = Look(COLOURS[index % len(COLOURS)], SYMBOLS[index % len(SYMBOLS)])
    return result


def make_layout(x: dict[str, Any], y: dict[str, Any], *, legend: bool = False) -> dict[str, Any]:
    """A Plotly layout from its axes; ``title`` of an axis is text."""
    axes = [{**axis, "title": {"text": axis.get("title", "")}} for axis in (x, y)]
    return {
        "xaxis": axes[0],
        "yaxis": axes[1],
        "margin": {"l": 10, "r": 12, "t": 8, "b": 10},
        "showlegend": legend,
        "legend": LEGEND,
    }


def name_axis(names: Sequence[str]) -> dict[str, Any]:
    """Ticks with names; the middle of long ones is left out."""
    short = [name if len(name) <= 20 else f"{name[:9]}…{name[-10:]}" for name in names]
    return {"tickvals": list(names), "ticktext": short, "showgrid": False}


def error_bars(estimates: Sequence[Estimate], colour: str) -> dict[str, Any]:
    """Plotly's error bars; none where there is no interval."""
    return {
        "type": "data",
        "symmetric": False,
        "color": colour,
        "thickness": 1.4,
        "width": 4,
        "array": [e.high - e.value if e.has_interval else None for e in estimates],
        "arrayminus": [e.value - e.low if e.has_interval else None for e in estimates],
    }


def points(
    name: str,
    look: Look,
    estimates: Sequence[Estimate],
    positions: Sequence[float],
    text: Sequence[str],
    *,
    axis: str = "y",
) -> dict[str, Any]:
    """A backbone's numbers with error bars; the symbol of one without an interval is open.

    Args:
        positions: on the other axis.
        text: shown under the pointer.
        axis: of the numbers.
    """
    symbols = [look.symbol if each.has_interval else f"{look.symbol}-open" for each in estimates]
    return {
        "type": "scatter",
        "mode": "markers",
        "name": name,
        axis: [each.value for each in estimates],
        "y" if axis == "x" else "x": list(positions),
        f"error_{axis}": error_bars(estimates, look.colour),
        "marker": {"color": look.colour, "symbol": symbols, "size": 8},
        "text": list(text),
        "hovertemplate": "%{text}<extra></extra>",
    }


def describe(estimate: Estimate, digits: int, signed: bool = False) -> str:
    """``71.2 [70.1, 72.3]``, or ``71.2 (no interval)``."""
    ends = interval(estimate.low, estimate.high, digits, signed) or "(no interval)"
    return f"{number(estimate.value, digits, signed)} {ends}"


def forest(analysis: Analysis) -> list[Figure]:
    """The gain over the baseline in each task, with its interval."""
    selection = analysis.selection
    compared = [name for name in selection.backbones if name in analysis.gains]
    columns = [c for c in selection.columns if any((b, c) in analysis.task_gains for b in compared)]
    if not columns:
        return []
    labels = [*reversed([column.title for column in columns]), "mean gain"]
    rows = {label: row for row, label in enumerate(labels)}
    style = looks(analysis)
    data, alt, bars = [], [], []
    for index, name in enumerate(compared):
        shift = 0.5 * ((index + 0.5) / len(compared) - 0.5)
        gains = {
            c.title: analysis.task_gains[name, c]
            for c in columns
            if (name, c) in analysis.task_gains
        }
        gains["mean gain"] = analysis.gains[name].typical
        text = [f"{label}<br>{name} (%): {describe(e, 1, True)}" for label, e in gains.items()]
        positions = [rows[label] - shift for label in gains]
        data.append(points(name, style[name], [*gains.values()], positions, text, axis="x"))
        numbers = [f"{label} {number(e.value, 1, True)} %" for label, e in gains.items()]
        alt.append(f"{name}: {', '.join(numbers)}")
        bars.append((style[name].colour, positions, list(gains.values())))
    every = [*analysis.task_gains.values(), *(gain.typical for gain in analysis.gains.values())]
    low, high = _value_range(every)
    data += [arrows for each in bars if (arrows := _arrows(*each, low, high))["x"]]
    layout = make_layout(
        {
            "title": f"gain over {selection.baseline} (%)",
            "range": [low, high],
            "zerolinecolor": "var:muted",
        },
        {
            "tickvals": list(rows.values()),
            "ticktext": labels,
            "range": [-0.6, len(rows) - 0.4],
            "zeroline": False,
            "showgrid": False,
        },
        legend=len(compared) > 1,
    )
    title = f"Gain over {selection.baseline}, task by task"
    caption = (
        "Change of each task's main metric in percent of the baseline's; right is better, whichever"
        " way the metric runs. All intervals hold jointly at 95 %. A bar that crosses the line"
        " includes zero, one that ends in an arrow goes on; open symbols have no interval."
    )
    spec = {"data": data, "layout": layout}
    height = 130 + max(len(rows) * (16 + 13 * len(compared)), 120)
    return [Figure("forest", title, caption, "; ".join(alt), spec, height)]


def _arrows(
    colour: str, positions: Sequence[float], estimates: Sequence[Estimate], low: float, high: float
) -> dict[str, Any]:
    """An arrow where the bar of an estimate leaves the axis between ``low`` and ``high``."""
    ends = [
        (x, y, symbol)
        for y, estimate in zip(positions, estimates, strict=True)
        for x, symbol, leaves in (
            (low, "triangle-left", estimate.low < low),
            (high, "triangle-right", estimate.high > high),
        )
        if leaves
    ]
    return {
        "type": "scatter",
        "mode": "markers",
        "x": [x for x, _, _ in ends],
        "y": [y for _, y, _ in ends],
        "marker": {"symbol": [symbol for _, _, symbol in ends], "size": 9, "color": colour},
        "cliponaxis": False,
        "hoverinfo": "skip",
        "showlegend": False,
    }


def _value_range(estimates: Sequence[Estimate]) -> tuple[float, float]:
    """The ends of an axis that shows all values and intervals of usual length."""
    values = [e.value for e in estimates]
    reach = 2.5 * float(np.median([e.reach for e in estimates if e.has_interval] or [0.4]))
    low, high = min(*values, 0.0) - reach, max(*values, 0.0) + reach
    return low, high


def task_bars(analysis: Analysis) -> list[Figure]:
    """A small bar chart for each task."""
    style = looks(analysis)
    figures = []
    for index, head in enumerate(overview(analysis).heads):
        keys = {b: (b, head.column, head.metric) for b in analysis.selection.backbones}
        estimates = {
            b: analysis.estimates[key] for b, key in keys.items() if key in analysis.estimates
        }
        if estimates:
            figures.append(_bar_chart(f"bars-{index}", head, estimates, style))
    return figures


def _bar_chart(
    name: str, head: MetricColumn, estimates: dict[str, Estimate], style: dict[str, Look]
) -> Figure:
    backbones, shown = list(estimates), list(estimates.values())
    text = [describe(estimate, head.digits) for estimate in shown]
    bar = {
        "type": "bar",
        "x": backbones,
        "y": [e.value for e in shown],
        "marker": {
            "color": [style[b].colour for b in backbones],
            "opacity": [1.0 if e.has_interval else 0.45 for e in shown],
        },
        "error_y": error_bars(shown, "var:text"),
        "text": text,
        "textposition": "none",
        "hovertemplate": "%{x}: %{text}<extra></extra>",
        "width": 0.62,
    }
    layout = make_layout(name_axis(backbones), {"nticks": 5, "rangemode": "tozero"})
    pale = "" if all(e.has_interval for e in shown) else "; pale: no interval"
    better = "higher" if head.sign > 0 else "lower"
    return Figure(
        name,
        head.column.title,
        f"{head.label}{f' ({head.unit})' if head.unit else ''}, {better} is better{pale}",
        ", ".join(f"{b} {words}" for b, words in zip(backbones, text, strict=True)),
        {"data": [bar], "layout": layout},
        230,
    )
