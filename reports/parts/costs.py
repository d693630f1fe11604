"""What a gain costs."""

from __future__ import annotations

import numpy as np
import pandas as pd

from reports.analysis import Analysis, shared_columns
from reports.parts.figures import Figure, looks, make_layout, points
from reports.parts.tables import number
from reports.stats.intervals import Estimate

PARTS = {
    "experts": "experts_seconds",
    "labelling": "label_seconds",
    "training": "train_seconds",
}  # part → cost of parent runs


def costs(analysis: Analysis) -> dict[str, dict[str, float]]:
    """Backbone → seconds of experts, labelling, training and probing, means over its seeds.

    Probing is summed over the tasks that all backbones have, of several protocols of a task the
    mean, so that no backbone looks cheap because it lacks a task.
    """
    result: dict[str, dict[str, float]] = {}
    selection = analysis.selection
    shared = shared_columns(analysis, selection.backbones)
    for name in selection.backbones:
        parents = [run for (backbone, _), run in selection.parents.items() if backbone == name]
        means = pd.DataFrame([run.costs for run in parents]).mean()
        parts = {part: float(means[metric]) for part, metric in PARTS.items() if metric in means}
        seconds = [
            (column.task, column.letter, cell.costs.get("seconds", np.nan))
            for column in shared
            for cell in selection.cells[name, column]
        ]
        probing = pd.DataFrame(seconds, columns=["task", "letter", "seconds"]).dropna()
        by_column = probing.groupby(["task", "letter"])["seconds"].mean()
        if len(by_column):
            parts["probing"] = float(by_column.groupby("task").mean().sum())
        if parts:
            result[name] = parts
    return result


def gain_against_cost(analysis: Analysis) -> list[Figure]:
    """Mean gain against the seconds of experts, labels, training and probing."""
    seconds = costs(analysis)
    baseline = analysis.selection.baseline
    names = [name for name in seconds if name in analysis.gains or name == baseline]
    if len(names) < 2:
        return []
    style = looks(analysis)
    data, alt = [], []
    for name in names:
        gain = analysis.gains[name].typical if name in analysis.gains else Estimate(0.0)
        parts = ", ".join(f"{part} {_duration(value)}" for part, value in seconds[name].items())
        alt.append(f"{name}: {parts}")
        text = f"{name}: {number(gain.value, 1, True)} %<br>{parts}"
        data.append(points(name, style[name], [gain], [sum(seconds[name].values())], [text]))
    layout = make_layout(
        {"type": "log", "title": "seconds, log"},
        {"title": f"gain over {baseline} (%)", "zerolinecolor": "var:muted"},
        legend=True,
    )
    caption = (
        "Mean gain against the seconds of experts, labels, training and probing (of the tasks that"
        " all have), means over seeds. Up and left is better. The cost of weights that were trained"
        " elsewhere is unknown and not included."
    )
    spec = {"data": data, "layout": layout}
    return [Figure("cost", "Gain against cost", caption, "; ".join(alt), spec)]


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.1f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
