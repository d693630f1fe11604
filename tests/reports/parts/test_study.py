"""A sweep in a report, beside backbones and alone."""

from __future__ import annotations

import pytest

from reports.attach import attach_report
from reports.errors import TrackingError
from reports.parts.study import study_frame
from reports.render.page import render
from reports.report import Request, build


def test_the_study_in_the_experiment_and_alone(store, report):
    (study,) = report.studies
    assert study.varied == ["lambda_seg", "lambda_depth"]
    assert list(study.directions) == ["dense", "zero-shot"]
    best = study.best("dense")
    assert best is not None and best.params["lambda_seg"] + best.params[
        "lambda_depth"
    ] == pytest.approx(1.1)
    assert [t.state for t in study.trials if not t.objectives] == [
        "failed: NonFiniteLoss: at step 7"
    ]
    front = {t.name for t in study.front()}
    assert "0" not in front, "trial 1 has the same zero-shot gain and a higher dense one"
    alone = build(Request(study="lambdas", tracking_uri=store.uri))
    html = render(alone)
    assert html.count(">clear<") == html.count(">not confirmed<") == 1
    frame = study_frame(study)
    assert list(frame.columns) == [
        "trial",
        "λ seg",
        "λ depth",
        "dense gain (%)",
        "zero-shot gain (%)",
        "state",
        "run",
    ]
    assert frame["trial"].tolist()[-1] == "3" and frame["state"].tolist()[:2] == [
        "on the Pareto front",
        "complete",
    ]
    assert (
        "run again on fresh seeds it is better (+0.80 to the base setting)"
        in alone.verdict.headline
    )
    assert (
        "λ search: lambdas" in html
        and 'data-figure="optuna-lambdas-0"' in html
        and "Contour Plot" in html
    )
    with pytest.raises(TrackingError, match=r"no study 'lambda'.*did you mean 'lambdas'"):
        build(Request(study="lambda", tracking_uri=store.uri))


def test_a_sweep_keeps_its_report(store):
    (sweep,) = store.search("tags.stage = 'sweep'")
    page = attach_report(Request(study="lambdas", tracking_uri=store.uri), [sweep.info.run_id])
    assert "λ search: lambdas" in page.read_text()
    assert [f.path for f in store.client.list_artifacts(sweep.info.run_id, "report")] == [
        "report/index.html"
    ]
