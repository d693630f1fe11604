"""Figures: valid Plotly, told in words, honest about what is not known."""

from __future__ import annotations

import json

import plotly.graph_objects as go

from reports.analysis import analyse
from reports.mlflow.query import Store
from reports.parts import figures as drawing
from reports.selection import select
from tests.reports.synthetic import stored_run


def test_figures_are_valid_plotly_and_told_in_words(report):
    kinds = {figure.id.split("-")[0] for figure in report.figures()}
    assert {"forest", "bars", "cost", "probe", "optuna"} <= kinds
    for figure in report.figures():
        spec = json.loads(
            json.dumps(figure.spec)
            .replace("var:text", "#000")
            .replace("var:muted", "#000")
            .replace("var:line", "#000")
        )
        go.Figure(spec)  # raises on anything that Plotly does not know
        assert figure.alt and figure.title


def test_costs_are_of_the_tasks_that_all_have_and_of_one_protocol_each(store):
    values = [
        ("clip", "voc/linear", "p"),
        ("clip", "voc/linear", "q"),
        ("clip", "ade20k/linear", "p"),
        ("mine", "voc/linear", "p"),
        ("mine", "voc/linear", "q"),
    ]
    runs = [
        stored_run(place, name, task, 0, 50.0 + place, protocol=protocol)
        for place, (name, task, protocol) in enumerate(values)
    ]
    analysis = analyse(Store(store.uri), select(runs, ["x"]))
    assert drawing.costs(analysis) == {"clip": {"probing": 1.0}, "mine": {"probing": 1.0}}, (
        "each run took one second"
    )


def test_no_two_backbones_look_alike(store):
    runs = [stored_run(place, f"b{place:02}", "voc/linear", 0, 50.0 + place) for place in range(41)]
    looks = drawing.looks(analyse(Store(store.uri), select(runs, ["x"])))
    assert len(looks) == 41
    for what in (
        lambda one: (one.colour, one.symbol),
        lambda one: (one.colour, one.dash),
        lambda one: (one.colour, one.pattern),
    ):
        assert len({what(one) for one in looks.values()}) == 41


def test_an_unknown_interval_is_drawn_open_and_without_bars(store):
    runs = [
        stored_run(place, name, "voc/linear", 0, 50.0 + place)
        for place, name in enumerate(("clip", "mine"))
    ]
    figure = drawing.forest(analyse(Store(store.uri), select(runs, ["x"])))
    (data,) = figure.spec["data"]
    assert data["error_x"]["array"] == [None, None]
    assert all(symbol.endswith("-open") for symbol in data["marker"]["symbol"])
    (bars,) = drawing.task_bars(analyse(Store(store.uri), select(runs, ["x"])))
    assert (
        set(bars.spec["data"][0]["marker"]["opacity"]) == {0.45}
        and "pale: no interval" in bars.caption
    )
    assert "no interval" in bars.alt
