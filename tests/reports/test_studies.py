"""A sweep in the report of an experiment, and alone."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from reports.pages import attach_report, render_page
from reports.records import TrackingError
from reports.report import ReportRequest, build_report
from reports.studies import study_frame

pytestmark = pytest.mark.integration


@pytest.fixture
def alone(store):
    return build_report(ReportRequest(study="lambdas", tracking_uri=store.uri))


def test_trials_are_ranked_and_followed_by_the_fresh_seeds(report):
    (study,) = report.studies
    frame = study_frame(study)
    gains = ["interquartile mean gain (%)", "zero-shot gain (%)", "voc/linear"]
    assert {*frame.columns} == {"trial", "λ seg", *gains, "state", "run"}
    assert frame["trial"].tolist() == ["1", "2", "0", "3", "again: λseg 0.1", "again: base"]
    assert frame["interquartile mean gain (%)"].tolist()[:3] == [1.1, 0.3, 0.2]
    assert frame["interquartile mean gain (%)"].tolist()[4:] == pytest.approx([1.02, 0.204])
    assert frame["state"].tolist()[2:5] == [
        "complete",
        "failed: NonFiniteLoss: at step 7",
        "mean of 3 fresh seeds",
    ]


def test_the_report_of_a_study(alone):
    html = render_page(alone)
    assert alone.summary.headline.startswith(
        "λseg 0.1 is best by interquartile mean gain over clip-ft (+1.10 %)"
    )
    assert "on fresh seeds it is better (+0.82 [+0.80, +0.84]" in alone.summary.headline
    assert "1 of 4 trials have no value: failed: NonFiniteLoss: at step 7." in html
    assert "the best trial loses 1.10 % in zero-shot against clip-ft." in html
    assert 'data-figure="optuna-lambdas-0"' in html and "Contour Plot" in html


def test_an_unknown_study_is_one_line(store):
    with pytest.raises(TrackingError, match=r"no study 'lambda'.*did you mean .*lambdas"):
        build_report(ReportRequest(study="lambda", tracking_uri=store.uri))


def test_a_sweep_has_its_report_as_an_artifact(store, alone, monkeypatch):
    (sweep,) = store.search(stage="sweep")
    request = ReportRequest(study="lambdas", tracking_uri=store.uri)
    line, _ = attach_report(request, [sweep.run_id])
    assert "λ search: lambdas" in Path(line.removeprefix("report: ")).read_text()
    with monkeypatch.context() as patch:
        patch.setattr("reports.pages.build_report", lambda _: 1 / 0)
        with pytest.raises(ZeroDivisionError):  # a bug is not a reason
            attach_report(request, [sweep.run_id])
    assert attach_report(replace(request, study="none"), [])[0].startswith("no report was made: no")
    (artifact,) = store.client.list_artifacts(sweep.run_id, "report")
    assert artifact.path == "report/index.html"
