"""Tracking against a real MLflow server with PostgreSQL behind it."""

from __future__ import annotations

import pytest

from reports.tracking import Tracker


@pytest.mark.slow
def test_runs_reach_a_server_on_postgresql(mlflow_server, tmp_path):
    tracker = Tracker("paper", mlflow_server)
    panel = tmp_path / "panel.png"
    panel.write_bytes(b"\x89PNG")
    with tracker.run("parent", tags={"backbone": "x"}) as parent, tracker.run("voc/linear", parent=parent) as child:
        child.log_metrics({"t2i_R@5": 12.5})
        for step in range(700):
            child.log_metrics({"train/loss": step}, step)
        child.log_file(panel, "pictures")
    run = tracker.client.get_run(child.id)
    assert run.info.status == "FINISHED"
    assert run.data.metrics["t2i_R_at_5"] == 12.5
    assert len(tracker.client.get_metric_history(child.id, "train/loss")) == 700
    assert [f.path for f in tracker.client.list_artifacts(child.id, "pictures")] == ["pictures/panel.png"]
    assert Tracker("paper", mlflow_server).experiment_id == tracker.experiment_id
