"""A sweep in the report of an experiment, and alone."""

from __future__ import annotations

import pytest

from reports.attach import attach_report
from reports.errors import TrackingError
from reports.parts.study import study_frame
from reports.render.page import render_page
from reports.report import ReportRequest, build_report

pytestmark = pytest.mark.integration


@pytest.fixture
def alone(store):
    return build_report(ReportRequest(study="lambdas", tracking_uri=store.uri))


def test_trials_and_their_front(report):
    (study,) = report.studies
    assert study.varied == ["lambda_depth", "lambda_seg"]
    assert list(study.directions) == ["dense", "zero-shot"]
    assert study.best.objectives["dense"] == pytest.approx(1.1)
    states = [trial.state for trial in study.trials if not trial.objectives]
    assert states == ["failed: NonFiniteLoss: at step 7"]
    names = {trial.name for trial in study.front()}
    assert "0" not in names, "trial 1 has the same zero-shot gain and a higher dense one"
    frame = study_frame(study)
    objectives = ["dense gain (%)", "zero-shot gain (%)"]
    assert list(frame.columns) == ["trial", "λ depth", "λ seg", *objectives, "state", "run"]
    assert frame["trial"].tolist()[-1] == "3"
    assert frame["state"].tolist()[:2] == ["on the Pareto front", "complete"]


def test_the_report_of_a_study(alone):
    html = render_page(alone)
    assert html.count(">clear<") == html.count(">not confirmed<") == 1
    assert "on fresh seeds it is better (+0.80 to the base setting)" in alone.summary.headline
    assert 'data-figure="optuna-lambdas-0"' in html and "Contour Plot" in html


def test_an_unknown_study_is_one_line(store):
    with pytest.raises(TrackingError, match=r"no study 'lambda'.*did you mean .*lambdas"):
        build_report(ReportRequest(study="lambda", tracking_uri=store.uri))


def test_a_sweep_has_its_report_as_an_artifact(store, alone):
    (sweep,) = store.search("tags.stage = 'sweep'")
    page = attach_report(alone, store.uri, [sweep.info.run_id])
    assert "λ search: lambdas" in page.read_text()
    (artifact,) = store.client.list_artifacts(sweep.info.run_id, "report")
    assert artifact.path == "report/index.html"
