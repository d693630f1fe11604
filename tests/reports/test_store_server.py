"""A real MLflow server with PostgreSQL: runs are written there and reported from elsewhere."""

from __future__ import annotations

import pytest
import requests

from reports.report import ReportRequest, build_report
from reports.store import Store
from reports.tracking import Tracker
from tests.reports.synthetic import write_runs

pytestmark = pytest.mark.cluster


def test_a_server_takes_runs_and_gives_a_report(mlflow_server, tmp_path, own_home, monkeypatch):
    paths = []
    send = requests.Session.send
    monkeypatch.setattr(
        requests.Session,
        "send",
        lambda self, request, **k: paths.append(request.path_url) or send(self, request, **k),
    )
    tracker = Tracker("paper", mlflow_server)
    with tracker.run("long") as run:
        for step in range(700):
            run.log_metrics({"train/loss": step}, step)
    assert len(tracker.client.get_metric_history(run.id, "train/loss")) == 700
    write_runs(tracker, {"clip-ft": 0.5, "cliptex": 0.7}, pictures=True)

    def requests_of_report():
        paths.clear()
        report = build_report(ReportRequest(["paper"], tracking_uri=mlflow_server))
        fetched = [path for path in paths if "/artifacts/" in path and "?" not in path]
        return report, len(fetched), [*paths]

    report, fetched, first = requests_of_report()
    assert sum("runs/search" in path for path in first) == 1 and fetched >= 6
    _, fetched, again = requests_of_report()
    assert not fetched, "artifacts are cached by run"
    assert len(again) < len(first) / 2
    estimates = report.analysis.estimates.values()
    assert all(each.images for each in estimates), "per-image scores came over the wire"
    assert report.galleries[0].rows
    store = Store(mlflow_server)
    assert store.artifact(store.runs(["paper"])[-1], "pictures/none.png") is None
    assert store.artifact(store.runs(["paper"])[-1], "none/none.png") is None
