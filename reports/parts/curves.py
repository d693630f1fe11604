"""Curves of training losses."""

from __future__ import annotations

from reports.analysis import Analysis
from reports.mlflow.query import Store
from reports.parts.figures import Figure, looks, make_layout

MOST_CURVES = 40  # each is a request to the store


def training_curves(store: Store, analysis: Analysis) -> list[Figure]:
    """The contrastive loss of every backbone's training."""
    selection, style = analysis.selection, looks(analysis)
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
