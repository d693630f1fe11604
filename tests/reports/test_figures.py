"""Figures are valid Plotly, have a text, and show unknown intervals as such."""

from __future__ import annotations

import json

import plotly.graph_objects as go

from reports.figures import forest, task_bars
from tests.reports.synthetic import stored_runs


def test_figures_are_valid_plotly_with_a_text(report):
    kinds = {figure.id.split("-")[0] for figure in report.all_figures()}
    assert {"forest", "bars", "cost", "optuna"} <= kinds
    for figure in report.all_figures():
        spec = json.dumps(figure.spec)
        for name in ("text", "muted", "line"):
            spec = spec.replace(f"var:{name}", "#000")
        go.Figure(json.loads(spec))  # raises on anything that Plotly does not know
        assert figure.alt and figure.title


def test_an_unknown_interval_has_an_open_symbol_and_no_bar(analysis_of):
    analysis = analysis_of(stored_runs(lambda _, index, seed: 50.0 + index, seeds=[0]))
    (figure,) = forest(analysis)
    (data,) = figure.spec["data"]
    assert data["error_x"]["array"] == [None, None]
    assert all(symbol.endswith("-open") for symbol in data["marker"]["symbol"])
    (bars,) = task_bars(analysis)
    assert set(bars.spec["data"][0]["marker"]["opacity"]) == {0.45}
    assert "pale: no interval" in bars.caption and "no interval" in bars.alt


def test_a_bar_that_leaves_the_figure_ends_in_an_arrow(analysis_of):
    values = {
        "clip": (50.0, 50.1, 50.2),
        "wide": (20.0, 50.0, 80.0),
        "near": (51.0, 51.1, 51.3),
        "other": (50.0, 50.2, 50.1),
    }
    value = lambda _, index, seed: [*values.values()][index][seed]
    runs = stored_runs(value, ("voc/linear", "ade20k/linear"), [*values])
    (figure,) = forest(analysis_of(runs))
    (arrows,) = [trace for trace in figure.spec["data"] if trace.get("cliponaxis") is False]
    low, high = figure.spec["layout"]["xaxis"]["range"]
    assert set(arrows["x"]) == {low, high}
    assert set(arrows["marker"]["symbol"]) == {"triangle-left", "triangle-right"}
