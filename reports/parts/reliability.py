"""Reliability diagrams: accuracy of the images over their confidence."""

from __future__ import annotations

import numpy as np

from cliptex_common.weighted import bins_of
from reports.analysis import Analysis
from reports.artifacts import PER_IMAGE
from reports.mlflow.query import Store
from reports.parts.figures import Figure, backbone_styles, make_layout


def reliability(store: Store, analysis: Analysis) -> list[Figure]:
    """One for each column that measures calibration: the first seed of each backbone."""
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
