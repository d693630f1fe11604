"""A real MLflow server with PostgreSQL: runs are written there and reported from elsewhere."""

from __future__ import annotations

import pytest
import requests

from reports.report import ReportRequest, build_report
from reports.store import Store
from reports.tracking import Tracker
from tests.reports.synthetic import write_run

pytestmark = pytest.mark.cluster


def test_a_server_takes_runs_and_gives_a_report(mlflow_server, tmp_path, own_home, monkeypatch):
    paths = []
    send = requests.Session.send
    monkeypatch.setattr(
        requests.Session,
        "send",
        lambda self, request, **k: paths.append(request.path_url) or send(self, request, **k),
    )
    tracker = Tracker("written", mlflow_server)
    with tracker.run("parent") as parent, tracker.run("voc/linear", parent=parent) as child:
        child.log_metrics({"t2i_R@5": 12.5})
        for step in range(700):
            child.log_metrics({"train/loss": step}, step)
        child.log_text("text", "folder/text.txt")
    run = tracker.client.get_run(child.id)
    assert run.info.status == "FINISHED" and run.data.metrics["t2i_R_at_5"] == 12.5
    assert len(tracker.client.get_metric_history(child.id, "train/loss")) == 700
    (artifact,) = tracker.client.list_artifacts(child.id, "folder")
    assert artifact.path == "folder/text.txt"

    tracker = Tracker("paper", mlflow_server)
    for backbone, quality in (("clip-ft", 0.5), ("cliptex", 0.7)):
        write_run(tracker, backbone, 0, {"voc/linear": quality}, pictures=True)
    paths.clear()
    report = build_report(ReportRequest(experiments=["paper"], tracking_uri=mlflow_server))
    fetched = len([path for path in paths if "/artifacts/" in path and "?" not in path])
    assert sum("runs/search" in path for path in paths) == 1 and fetched >= 6
    first = len(paths)
    paths.clear()
    build_report(ReportRequest(experiments=["paper"], tracking_uri=mlflow_server))
    assert not [path for path in paths if "/artifacts/" in path and "?" not in path], (
        "artifacts are cached by run id"
    )
    assert len(paths) < first / 2, f"{len(paths)} requests, {first} at first"
    assert report.analysis is not None
    assert all(estimate.images for estimate in report.analysis.estimates.values()), (
        "per-image scores came over the wire"
    )
    assert report.galleries and report.galleries[0].rows
    store = Store(mlflow_server)
    assert store.artifact(store.runs(["paper"])[-1], "pictures/none.png") is None
    assert store.artifact(store.runs(["paper"])[-1], "none/none.png") is None
