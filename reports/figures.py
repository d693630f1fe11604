"""The figures of a report as plain Plotly JSON (``{"data", "layout"}``), built without plotly.

Colours like ``var:text`` are variables of the page, resolved in the browser, so that a figure
follows its light or dark theme.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np
import pandas as pd

from cliptex_common.metrics import bins_of
from reports.comparison import Analysis
from reports.records import LEVELS, PER_IMAGE
from reports.statistics import Estimate
from reports.store import Store
from reports.tables import MOST_PAIRED, bounds_of, count, decimal, main_columns, with_interval

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
T = TypeVar("T")
SYMBOLS = ("square", "diamond", "triangle-up", "cross", "star", "hexagon", "triangle-down", "x")
MOST_CURVES = 40  # each is a request to the store
LEGEND = {"orientation": "h", "yanchor": "bottom", "y": 1.0, "x": 0, "xanchor": "left"}


@dataclass(frozen=True)
class Figure:
    """A figure and its text.

    Attributes:
        caption: what it shows and how to read it.
        alt: its content in words, for readers who cannot see it.
        spec: Plotly JSON.
        height: in pixels.
        menus: name → its choices, of a figure whose reader selects what is on the axes: of the
            vertical one, of the horizontal one.
        choices: what replaces parts of ``spec``; see ``scatter``. ``opacity`` and
            ``notes`` (parts of the layout) are of each vertical and horizontal choice.
    """

    id: str
    title: str
    caption: str
    alt: str
    spec: dict[str, Any]
    height: int = 340
    menus: dict[str, list[str]] = field(default_factory=dict)
    choices: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Style:
    """The colour and symbol of a backbone in all figures."""

    colour: str
    symbol: str


def backbone_styles(analysis: Analysis) -> dict[str, Style]:
    """Backbone → its style; colours repeat after ten backbones, colour and symbol after forty."""
    baseline = analysis.selection.baseline
    compared = [name for name in analysis.selection.backbones if name != baseline]
    return {baseline: Style(BASELINE_COLOUR, "circle"), **cycled_styles(compared)}


def cycled_styles(names: Iterable[T]) -> dict[T, Style]:
    """Name → a style of its own, as far as there are some."""
    return {
        name: Style(COLOURS[index % len(COLOURS)], SYMBOLS[index % len(SYMBOLS)])
        for index, name in enumerate(names)
    }


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
    style: Style,
    estimates: Sequence[Estimate],
    positions: Sequence[float],
    text: Sequence[str],
    *,
    axis: str = "y",
) -> dict[str, Any]:
    """A backbone's numbers with error bars; the symbol of one with one seed, or without an
    interval, is open.

    Args:
        positions: on the other axis.
        text: shown under the pointer.
        axis: of the numbers.
    """
    symbols = [
        style.symbol if e.has_interval and e.seeds > 1 else f"{style.symbol}-open"
        for e in estimates
    ]
    return {
        "type": "scatter",
        "mode": "markers",
        "name": name,
        axis: [each.value for each in estimates],
        "y" if axis == "x" else "x": list(positions),
        f"error_{axis}": error_bars(estimates, style.colour),
        "marker": {"color": style.colour, "symbol": symbols, "size": 8},
        "text": list(text),
        "hovertemplate": "%{text}<extra></extra>",
    }


def forest(analysis: Analysis) -> list[Figure]:
    """The gain over the baseline in each task, with its interval."""
    selection = analysis.selection
    compared = [name for name in selection.backbones if name in analysis.gains]
    columns = [c for c in selection.columns if any((b, c) in analysis.task_gains for b in compared)]
    if not columns:
        return []
    labels = [*reversed([column.title for column in columns]), "mean gain"]
    rows = {label: row for row, label in enumerate(labels)}
    styles = backbone_styles(analysis)
    data, alt, ends = [], [], []
    low, high = _value_range(
        [*analysis.task_gains.values(), *(gain.mean for gain in analysis.gains.values())]
    )
    for index, name in enumerate(compared):
        shift = 0.5 * ((index + 0.5) / len(compared) - 0.5)
        gains = {
            c.title: analysis.task_gains[name, c]
            for c in columns
            if (name, c) in analysis.task_gains
        }
        gains["mean gain"] = analysis.gains[name].mean
        text = [f"{label}<br>{name} (%): {with_interval(e, 1, True)}" for label, e in gains.items()]
        positions = [rows[label] - shift for label in gains]
        data.append(points(name, styles[name], [*gains.values()], positions, text, axis="x"))
        numbers = [f"{label} {decimal(e.value, 1, True)} %" for label, e in gains.items()]
        alt.append(f"{name}: {', '.join(numbers)}")
        for y, estimate in zip(positions, gains.values(), strict=True):
            if estimate.low < low:
                ends.append((low, y, "triangle-left", styles[name].colour))
            if estimate.high > high:
                ends.append((high, y, "triangle-right", styles[name].colour))
    if ends:
        limits, heights, symbols, colours = zip(*ends, strict=True)
        arrows = {"symbol": symbols, "size": 9, "color": colours}
        hidden = {"cliponaxis": False, "hoverinfo": "skip", "showlegend": False}
        data.append({"mode": "markers", "x": limits, "y": heights, "marker": arrows, **hidden})
    layout = make_layout(
        {
            "title": "gain (%)",  # the card's heading names the baseline
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
        " way the metric runs. Separate 95 % intervals; the marks of the table are corrected for"
        " their number. A bar that ends in an arrow goes on; open symbols have one seed and speak"
        " of these weights, or no interval."
    )
    spec = {"data": data, "layout": layout}
    height = 130 + max(len(rows) * (16 + 13 * len(compared)), 120)
    return [Figure("forest", title, caption, "; ".join(alt), spec, height)]


def profile(analysis: Analysis) -> list[Figure]:
    """The mean gain over the tasks of each level, a line for each backbone; none without levels."""
    if not analysis.level_gains:
        return []
    styles, base = backbone_styles(analysis), analysis.selection.baseline
    names = list(dict.fromkeys(name for name, _ in analysis.level_gains))
    data, alt = [], []
    for index, name in enumerate(names):
        gains = {
            level: analysis.level_gains[name, level]
            for level in LEVELS
            if (name, level) in analysis.level_gains
        }
        shift = 0.3 * ((index + 0.5) / len(names) - 0.5)  # so that intervals do not overlap
        text = [
            f"{name}, {level} level: {with_interval(gain.mean, 1, True)} % over"
            f" {count(len({column.base for column in gain.columns}), 'task')}"
            for level, gain in gains.items()
        ]
        means = [gain.mean for gain in gains.values()]
        line = points(name, styles[name], means, [LEVELS.index(e) + shift for e in gains], text)
        data.append({**line, "mode": "lines+markers", "line": {"color": styles[name].colour}})
        alt += text
    ticks = {"tickvals": [*range(len(LEVELS))], "ticktext": [f"{level} level" for level in LEVELS]}
    layout = make_layout(
        {**ticks, "range": [-0.4, len(LEVELS) - 0.6], "zeroline": False},
        {"title": f"mean gain over {base} (%)", "zerolinecolor": "var:muted"},
        legend=len(names) > 1,
    )
    caption = (
        "Low: edges, corners, orientation; mid: geometry, grouping, likeness; high: categories."
        f" Means over tasks of the change of the main metric in percent of {base}'s, positive where"
        " better; separate 95 % intervals."
    )
    spec = {"data": data, "layout": layout}
    return [Figure("levels", "Profile over levels", caption, "; ".join(alt), spec, 360)]


def _value_range(estimates: Sequence[Estimate]) -> tuple[float, float]:
    """The ends of an axis that shows all values and intervals of usual length."""
    values = [e.value for e in estimates]
    reach = 2.5 * float(np.median([e.reach() for e in estimates if e.has_interval] or [0.4]))
    low, high = min(*values, 0.0) - reach, max(*values, 0.0) + reach
    return low, high


def task_bars(analysis: Analysis) -> list[Figure]:
    """A small bar chart for each task."""
    styles = backbone_styles(analysis)
    figures = []
    for index, head in enumerate(main_columns(analysis)):
        estimates = analysis.numbers(head.column, head.metric)
        if not estimates:
            continue
        names, shown = list(estimates), list(estimates.values())
        text = [with_interval(estimate, head.digits) for estimate in shown]
        bar = {
            "type": "bar",
            "x": names,
            "y": [e.value for e in shown],
            "marker": {
                "color": [styles[name].colour for name in names],
                "opacity": [1.0 if e.has_interval else 0.45 for e in shown],
            },
            "error_y": error_bars(shown, "var:text"),
            "text": text,
            "textposition": "none",
            "hovertemplate": "%{x}: %{text}<extra></extra>",
            "width": 0.62,
        }
        # of long names the middle is left out
        ticks = [name if len(name) <= 20 else f"{name[:9]}…{name[-10:]}" for name in names]
        layout = make_layout(
            {"tickvals": names, "ticktext": ticks, "showgrid": False},
            {"nticks": 5, "rangemode": "tozero"},
        )
        unit = f" ({head.unit})" if head.unit else ""
        better = "higher" if head.direction > 0 else "lower"
        pale = "" if all(e.has_interval for e in shown) else "; pale: no interval"
        caption = f"{head.label}{unit}, {better} is better{pale}"
        alt = ", ".join(f"{name} {words}" for name, words in zip(names, text, strict=True))
        marks = [
            {
                "type": "scatter",
                "mode": "markers",
                "name": bound,
                "x": list(values),
                "y": list(values.values()),
                "marker": {"symbol": "line-ew-open", "size": 34, "color": "var:muted"},
                "hovertemplate": f"%{{x}}: {bound} %{{y:.4g}}<extra></extra>",
            }
            for bound, values in bounds_of(analysis.selection, head.column).items()
        ]
        caption += f"; lines: {head.bounds}" if head.bounds else ""
        spec = {"data": [bar, *marks], "layout": layout}
        figures.append(Figure(f"bars-{index}", head.column.title, caption, alt, spec, 230))
    return figures


def training_curves(store: Store, analysis: Analysis) -> list[Figure]:
    """The contrastive loss of every backbone's training."""
    selection, styles = analysis.selection, backbone_styles(analysis)
    data, ends = [], []
    for (name, seed), parent in list(selection.parents.items())[:MOST_CURVES]:
        run = selection.runs.get(parent.train_run)
        metrics = run.metrics if run else {}
        metric = next((m for m in ("train/loss_clip", "train/loss") if m in metrics), None)
        if run is None or metric is None:
            continue
        label = f"{name}, seed {seed}"
        steps, values = store.history(run.run_id, metric)
        ends.append(f"{label} ends at {values[-1]:.4g}")
        data.append(
            {
                "type": "scatter",
                "mode": "lines" if len(steps) > 1 else "markers",
                "name": label,
                "x": steps,
                "y": [float(f"{value:.5g}") for value in values],
                "line": {"color": styles[name].colour, "width": 1.4},
                "hovertemplate": f"{label}: %{{y:.4g}} at step %{{x}}<extra></extra>",
            }
        )
    if not data:
        return []
    layout = make_layout({"title": "step"}, {"rangemode": "tozero"})
    title, caption = "Training of the backbones", "Contrastive loss; a line for each seed."
    spec = {"data": data, "layout": layout}
    return [Figure("train-loss", title, caption, ", ".join(ends), spec, 220)]


def reliability(store: Store, analysis: Analysis) -> list[Figure]:
    """A reliability diagram – accuracy of the images over their confidence – for each column that
    measures calibration: the first seed of each backbone."""
    selection, styles = analysis.selection, backbone_styles(analysis)
    figures: list[Figure] = []
    diagonal = {
        "type": "scatter",
        "mode": "lines",
        "name": "calibrated",
        "x": [0, 1],
        "y": [0, 1],
        "line": {"color": "var:muted", "dash": "dot"},
        "hoverinfo": "skip",
    }
    for column in selection.columns:
        if "ece" not in dict(column.metrics):
            continue
        data, alt = [diagonal], []
        for name in selection.backbones:
            cells = selection.cells.get((name, column), [])
            arrays = store.arrays(cells[0], PER_IMAGE, {"confidence", "rank"}) if cells else {}
            if not arrays:
                continue
            bins, right = bins_of(arrays["confidence"]), arrays["rank"] == 0
            filled = np.unique(bins)
            confidence, accuracy = (
                [float(values[bins == each].mean()) for each in filled]
                for values in (arrays["confidence"], right)
            )
            counts = [int((bins == each).sum()) for each in filled]
            style = styles[name]
            data.append(
                {
                    "type": "scatter",
                    "mode": "lines+markers",
                    "name": name,
                    "x": confidence,
                    "y": accuracy,
                    "line": {"color": style.colour},
                    "marker": {"color": style.colour, "symbol": style.symbol},
                    "text": [f"{name}, {count} images" for count in counts],
                    "hovertemplate": "%{text}: %{y:.2f} right at %{x:.2f}<extra></extra>",
                }
            )
            gap = float(right.mean() - arrays["confidence"].mean())
            alt.append(f"{name}: accuracy less confidence {gap:+.3f}")
        if alt:
            ends = {"range": [0, 1]}
            layout = make_layout(
                {**ends, "title": "confidence"}, {**ends, "title": "accuracy"}, legend=True
            )
            caption = (
                "Accuracy of the images in each of 15 bins of confidence, without temperature;"
                " below the diagonal, the backbone's classifier is too sure. First seed."
            )
            figures.append(
                Figure(
                    f"reliability-{len(figures)}",
                    column.title,
                    caption,
                    "; ".join(alt),
                    {"data": data, "layout": layout},
                    300,
                )
            )
    return figures


@dataclass(frozen=True)
class Score:
    """What can be on the vertical axis.

    Attributes:
        estimates: by backbone; some may be missing.
    """

    title: str
    estimates: Mapping[str, Estimate]
    digits: int = 1


@dataclass(frozen=True)
class Quantity:
    """What can be on the horizontal axis.

    Attributes:
        values: by backbone; NaN where unknown.
    """

    title: str
    values: pd.Series
    is_log: bool = False


def scatter(
    name: str,
    title: str,
    caption: str,
    styles: Mapping[str, Style],
    menus: tuple[str, str],
    scores: Sequence[Score],
    quantities: Sequence[Quantity],
) -> Figure:
    """A point for each backbone, of the first score and quantity until the reader selects others.

    Its ``choices``: ``y`` and ``x`` have ``data`` and ``layout`` of each score and quantity, whose
    entries replace those of the traces and of the layout (``render/figures.js``).

    Args:
        menus: what scores and quantities are called.
        styles: of the backbones.
    """
    y = [_score_choice(score, styles) for score in scores]
    x = [_quantity_choice(quantity, list(styles)) for quantity in quantities]
    data = [{**trace, **at} for trace, at in zip(y[0]["data"], x[0]["data"], strict=True)]
    layout = make_layout({}, {}, legend=len(styles) <= MOST_PAIRED)
    alt = [
        ", ".join([each, *(f"{of.title} {of.values[each]:.4g}" for of in quantities)])
        for each in styles
    ]
    return Figure(
        name,
        title,
        caption,
        "; ".join(alt),
        {"data": data, "layout": {**layout, **y[0]["layout"], **x[0]["layout"]}},
        400,
        {menus[0]: [each.title for each in scores], menus[1]: [each.title for each in quantities]},
        {"y": y, "x": x},
    )


def _score_choice(score: Score, styles: Mapping[str, Style]) -> dict[str, Any]:
    """The traces without their positions on the other axis, and the axis."""
    data = []
    for name, style in styles.items():
        estimate = score.estimates.get(name, Estimate(np.nan))
        trace = points(
            name, style, [estimate], [], [f"{name}: {with_interval(estimate, score.digits)}"]
        )
        del trace["x"]
        data.append(trace if name in score.estimates else {**trace, "y": [None]})
    axis = {"title": {"text": score.title}, "zerolinecolor": "var:muted"}
    return {"data": data, "layout": {"yaxis": axis}}


def _quantity_choice(quantity: Quantity, names: Sequence[str]) -> dict[str, Any]:
    hover = f"%{{text}}<br>{quantity.title}: %{{x:.4~g}}<extra></extra>"
    values = [quantity.values[name] for name in names]
    positions = [[value] if np.isfinite(value) else [None] for value in values]
    data = [{"x": position, "hovertemplate": hover} for position in positions]
    axis: dict[str, Any] = {"title": {"text": quantity.title}}
    if quantity.is_log:
        axis = {"type": "log", "title": {"text": f"{quantity.title}, log"}}
    return {"data": data, "layout": {"xaxis": axis}}
