"""Metrics are what their probes declare, and per-image scores give back the stored numbers."""

from __future__ import annotations

from dataclasses import replace

from reports.analysis import analyse, shown_metrics
from reports.metrics import TAG, Metric, declare, declared
from reports.mlflow.query import Store
from reports.mlflow.run import Tracker
from reports.parts.tables import overview
from reports.render.page import render
from reports.report import Request, build
from reports.selection import select
from tests.reports.synthetic import TASKS as KINDS
from tests.reports.synthetic import stored_run, write_run


def test_the_scores_of_every_kind_give_back_its_metrics_and_an_interval(
    store, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    tracker = Tracker("kinds", store.uri)
    for seed in range(2):
        for name, quality in (("clip", 0.5), ("cliptex", 0.8)):
            write_run(tracker, name, seed, dict.fromkeys(KINDS, quality))
    report = build(Request(experiments=["kinds"], tracking_uri=tracker.uri))
    analysis = report.analysis
    html = render(report)
    for table in ("segmentation", "detection", "geometry", "classification", "zero-shot"):
        assert html.partition(f'id="t-{table}"')[2].partition("</table>")[0].count("data-runs") >= 2
    assert {(one.title, one.metric) for one in report.classes} == {
        ("voc/linear", "IoU"),
        ("coco/ssd", "box AP"),
    }
    assert analysis.doubted == [] and not any(
        "No per-image scores" in note for note in report.notes
    )
    assert {c.kind for c in analysis.selection.columns} == set(KINDS.values()) and len(
        report.tables
    ) == 5
    shown = {(c.kind, name) for c in analysis.selection.columns for name in shown_metrics(c)}
    assert {(column.kind, metric) for _, column, metric in analysis.estimates} == shown
    for (_, column, metric), found in analysis.estimates.items():
        assert found.images == 60 and (found.low < found.high or found.value == 100), (
            column,
            metric,
        )
    for gap in analysis.differences.values():
        assert gap.images == 60 and gap.seeds == 2


def with_metric(run, metric: Metric, name: str = "mIoU"):
    return replace(run, tags={**run.tags, TAG: declare({name: metric})})


def test_a_metric_of_a_third_party_is_what_it_declares(store):
    error = Metric(-1, "px", 0.0, None, "end-point error")
    runs = [
        with_metric(
            stored_run(10 * place + seed, name, "flow/linear", seed, value + 30.0 * seed), error
        )
        for place, (name, value) in enumerate((("clip", 400.0), ("mine", 200.0)))
        for seed in range(3)
    ]
    analysis = analyse(Store(store.uri), select(runs, ["x"]))
    (column,) = analysis.selection.columns
    (head,) = overview(analysis).heads
    assert (head.words, head.unit, head.sign) == ("end-point error", "px", -1)
    assert analysis.estimates["clip", column, "mIoU"].high > 430, (
        "it is no percentage that ends at 100"
    )
    assert analysis.verdict("mine", column) == "win"


def test_runs_of_older_stores_say_directions_only():
    found = declared({"directions": "abs_rel:-1,rmse:-1,delta1:+1,log10:-1,elo:+1"})
    assert [(one.direction, one.unit, one.high) for one in found.values()] == [
        (-1, "", None),
        (-1, "m", None),
        (1, "%", 100.0),
        (-1, "", None),
        (1, "", None),
    ]
    assert [one.shown for one in found.values()] == [True, True, True, False, False]
    assert declared({TAG: declare(found)}) == found
    for damaged in ("[[[", "3", '{"mIoU": 1}', '{"mIoU": {"no": 1}}', "[" * 100_000):
        assert declared({TAG: damaged}) == {}


def test_scores_that_do_not_give_back_a_small_number_are_not_used(store, tmp_path, monkeypatch):
    """An AbsRel of 0.05 that is off by 2 %."""
    monkeypatch.chdir(tmp_path)
    tracker = Tracker("off", store.uri)
    write_run(tracker, "clip", 0, {"nyu-depth/linear": 0.9})
    (child,) = tracker.search("tags.task = 'nyu-depth/linear'")
    tracker.client.log_metric(child.info.run_id, "abs_rel", child.data.metrics["abs_rel"] + 0.001)
    report = build(Request(experiments=["off"], tracking_uri=tracker.uri))
    (column,) = report.analysis.selection.columns
    assert child.data.metrics["abs_rel"] < 0.25
    assert not report.analysis.estimates["clip", column, "abs_rel"].known
    assert report.analysis.estimates["clip", column, "rmse"].known
    assert any("do not give back the stored number" in note for note in report.notes)
