"""Runs are written whole, nested, batched, and end as they should – against a real MLflow store."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import time
from pathlib import Path

import pytest

from common.files import write_text
from reports.errors import TrackingError
from reports.mlflow.client import connect, metric_key, metric_name, tracking_uri
from reports.mlflow.environment import git_commit
from reports.mlflow.query import Store
from reports.mlflow.run import FAILURE_TAG, PARENT_TAG, Tracker
from tests.forks import Fork


@pytest.fixture(scope="module")
def uri(tmp_path_factory):
    folder = tmp_path_factory.mktemp("store")
    before = Path.cwd()
    os.chdir(folder)
    uri = f"sqlite:///{folder}/mlflow.db"
    Tracker("first", uri)
    yield uri
    os.chdir(before)


def test_parent_child_metrics_and_artifacts(uri, tmp_path):
    tracker = Tracker("nested", uri)
    with (
        tracker.run("parent", tags={"backbone": "x"}, params={"seed": 0}) as parent,
        tracker.run("voc/linear", tags={"task": "voc/linear"}, parent=parent) as child,
    ):
        for step in range(1203):
            child.log_metrics({"train/loss": 1 / (step + 1)}, step)
        child.log_metrics({"mIoU": 41.5, "i2t_R@1": 7.0, "hole": float("nan")})
        child.log_text("a = 1\n", "config.py")
        child.log_json({"mIoU": 41.5}, "metrics.json")
        child.log_dataset("voc", "abc", "probing", train=3)
    client = tracker.client
    run = client.get_run(child.id)
    assert run.info.status == client.get_run(parent.id).info.status == "FINISHED"
    assert run.data.tags[PARENT_TAG] == parent.id
    assert run.data.metrics["mIoU"] == 41.5
    assert run.data.metrics[metric_key("i2t_R@1")] == 7.0
    assert "hole" not in run.data.metrics
    history = client.get_metric_history(child.id, "train/loss")
    assert [m.step for m in sorted(history, key=lambda m: m.step)] == list(range(1203))
    assert {f.path for f in client.list_artifacts(child.id)} == {"config.py", "metrics.json"}
    assert run.inputs.dataset_inputs[0].dataset.name == "voc"
    assert tracker.finished(task="voc/linear").info.run_id == child.id
    assert tracker.finished(task="other") is None


@pytest.mark.parametrize(
    ("error", "status", "reason"),
    [
        (ValueError("loss is nan"), "FAILED", "ValueError: loss is nan"),
        (KeyboardInterrupt(), "KILLED", "interrupted"),
    ],
)
def test_endings(uri, error, status, reason):
    tracker = Tracker("endings", uri)
    with pytest.raises(type(error)), tracker.run("breaks") as run:
        run.log_metrics({"train/loss": 3.0}, 1)
        raise error
    stored = tracker.client.get_run(run.id)
    assert stored.info.status == status
    assert stored.data.tags[FAILURE_TAG] == reason
    assert stored.data.metrics == {"train/loss": 3.0}, "what was logged before the end is kept"


def test_resume_takes_the_same_run_up_again(uri, monkeypatch):
    tracker = Tracker("resume", uri)
    with pytest.raises(RuntimeError), tracker.run("r") as run:
        raise RuntimeError("first try")
    asked = []
    batch = tracker.client._client.log_batch
    monkeypatch.setattr(
        tracker.client._client, "log_batch", lambda *a, **k: asked.append(k) or batch(*a, **k)
    )
    tags = {f"tag{number}": str(number) for number in range(30)}
    with tracker.run("r", resume=run.id, tags=tags) as again:
        assert len(asked) == 1, "tags are set in one request"
        assert tracker.client.get_run(run.id).info.status == "RUNNING"
    stored = tracker.client.get_run(again.id)
    assert again.id == run.id
    assert stored.info.status == "FINISHED"
    assert FAILURE_TAG not in stored.data.tags


def hold_a_run(uri, marker):
    def stop(*_):
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, stop)
    with Tracker("killed", uri).run("victim") as run:
        write_text(marker, run.id)
        time.sleep(60)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_no_run_stays_running_when_its_process_is_killed(uri, number, tmp_path):
    victim = Fork(hold_a_run, uri, tmp_path / "run-id", output=tmp_path / "said")
    victim.wait_for(tmp_path, "run-id")
    run_id = (tmp_path / "run-id").read_text()
    tracker = Tracker("killed", uri)
    assert tracker.close_stale() == [], "a living process keeps its run"
    victim.signal(number)
    victim.end()
    closed = tracker.close_stale()
    stored = tracker.client.get_run(run_id)
    assert stored.info.status == "KILLED"
    assert closed == (["victim"] if number == signal.SIGKILL else [])
    assert stored.data.tags[FAILURE_TAG]


def test_a_run_of_which_a_part_broke_ends_failed(uri):
    tracker = Tracker("parts", uri)
    with tracker.run("parent") as run:
        run.fail("voc/linear: the loss is not finite")
    stored = tracker.client.get_run(run.id)
    assert stored.info.status == "FAILED"
    assert stored.data.tags[FAILURE_TAG] == "voc/linear: the loss is not finite"


def test_metrics_that_the_store_refused_are_sent_once_more(uri, monkeypatch):
    tracker = Tracker("refused", uri)
    with tracker.run("r") as run, monkeypatch.context() as away:
        away.setattr(tracker.client._client, "log_batch", _refuse)
        run.log_metrics({"train/loss": 2.0}, 7)
        run._send()
        assert run._pending[0][1].exception()
    assert tracker.client.get_run(run.id).data.metrics == {"train/loss": 2.0}


@pytest.mark.parametrize("ends", ["well", "badly"])
def test_a_slow_server_holds_nothing_up_and_gets_all_in_order(uri, monkeypatch, ends):
    tracker = Tracker("slow", uri)
    store, came = tracker.client._client.log_batch, []

    def slowly(run_id, metrics=(), **rest):
        time.sleep(0.2)
        came.extend(metric.step for metric in metrics)
        return store(run_id, metrics=metrics, **rest)

    monkeypatch.setattr(tracker.client._client, "log_batch", slowly)
    with contextlib.suppress(ZeroDivisionError), tracker.run("r") as run:
        started = time.perf_counter()
        for step in range(2200):  # four full batches, and a part
            run.log_metrics({"train/loss": 1.0}, step)
        assert time.perf_counter() - started < 0.2 and len(came) < 2200, (
            "training waited for the server"
        )
        if ends == "badly":
            raise ZeroDivisionError
    assert came == list(range(2200))
    assert tracker.client.get_run(run.id).info.status == (
        "FINISHED" if ends == "well" else "FAILED"
    )
    assert len(tracker.client.get_metric_history(run.id, "train/loss")) == 2200


def _refuse(*_, **__):
    from mlflow.exceptions import MlflowException

    raise MlflowException("API request failed: connection refused\nand more")


def test_a_store_that_fails_in_the_middle_is_the_users_to_mend_and_hides_nothing(uri, monkeypatch):
    tracker = Tracker("lost", uri)
    for name in ("log_batch", "set_tag", "set_terminated"):
        monkeypatch.setattr(tracker.client._client, name, _refuse)
    with pytest.raises(TrackingError, match="connection refused"), tracker.run("r") as run:
        run.log_metrics({"train/loss": 2.0})
    with pytest.raises(KeyboardInterrupt), tracker.run("r"):
        raise KeyboardInterrupt


def test_processes_may_make_the_same_new_store_at_once(tmp_path):
    both = [
        Fork(Tracker, "new", f"sqlite:///{tmp_path}/mlflow.db", output=tmp_path / f"said-{i}")
        for i in range(2)
    ]
    assert [fork.end() for fork in both] == [0, 0], [fork.text() for fork in both]


def test_wrong_stores_are_said_in_one_line(tmp_path):
    with pytest.raises(TrackingError, match="file stores are refused"):
        tracking_uri("./mlruns")
    with pytest.raises(TrackingError, match="cannot use the MLflow store"):
        connect(f"sqlite:////{tmp_path}/no/such/folder/mlflow.db")
    with pytest.raises(TrackingError, match="cannot use the MLflow store"):
        connect("http://127.0.0.1:9")  # nothing listens on the discard port
    (tmp_path / "bad.db").write_text("this is no database")
    with pytest.raises(TrackingError, match="cannot use the MLflow store"):
        connect(f"sqlite:///{tmp_path}/bad.db")


def test_a_store_of_a_newer_schema_is_refused(tmp_path):
    import sqlite3

    path = tmp_path / "mlflow.db"
    with sqlite3.connect(path) as database:
        database.execute("create table alembic_version (version_num varchar(32))")
        database.execute("insert into alembic_version values ('ffffffffffff')")
    with pytest.raises(TrackingError, match="newer MLflow"):
        connect(f"sqlite:///{path}")


def test_names_that_mlflow_admits():
    assert metric_key("t2i_R@10") == "t2i_R_at_10"
    assert metric_key(f"select/top1/lr_{1e6:g}") == "select/top1/lr_1e06"
    assert metric_name(metric_key("t2i_R@10")) == "t2i_R@10"
    assert metric_name("abs_rel") == "abs_rel"


def test_our_tags_have_one_prefix_and_every_run_says_who_started_what(uri):
    tracker = Tracker("tags", uri)
    with (
        tracker.run("parent", tags={"backbone": "x", "metrics.main": "a/b"}) as parent,
        tracker.run("child", parent=parent),
    ):
        pass
    for run in tracker.client._client.search_runs([tracker.experiment_id]):
        ours = {name for name in run.data.tags if not name.startswith("mlflow.")}
        assert ours and all(name.startswith("cliptex.") for name in ours)
        assert {"mlflow.user", "mlflow.source.name", "mlflow.source.type", "mlflow.runName"} <= set(
            run.data.tags
        )
        assert run.data.tags.get("cliptex.git.commit", "") == git_commit()
    assert [
        run.info.run_id
        for run in tracker.search("tags.backbone = 'x' and tags.`metrics.main` != ''")
    ] == [parent.id]
    tracker.client._client.create_run(tracker.experiment_id, tags={"backbone": "old"})
    (old,) = tracker.search("tags.backbone = 'old'")
    assert old.data.tags["backbone"] == "old", "what an older version wrote is found, too"


def test_a_run_is_monitored_and_the_reader_leaves_that_out(uri, monkeypatch):
    monkeypatch.setenv("MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL", "0.05")
    monkeypatch.setenv("MLFLOW_SYSTEM_METRICS_SAMPLES_BEFORE_LOGGING", "1")
    tracker = Tracker("monitored", uri)
    with tracker.run("r", monitored=True) as run:
        run.log_metrics({"mAP_at_50": 3.0, "val/i2t_R@1": 2.0})
        while not any(
            name.startswith("system/") for name in tracker.client.get_run(run.id).data.metrics
        ):
            time.sleep(0.1)
    (stored,) = Store(uri).runs(["monitored"])
    assert stored.metrics == {"mAP_at_50": 3.0, "val/i2t_R@1": 2.0}


def test_a_dataset_keeps_the_sizes_of_its_splits_and_no_path(uri):
    tracker = Tracker("sizes", uri)
    with tracker.run("r") as run:
        run.log_dataset("/some/where/{00000..00003}.tar", "d1", "training", pairs=7)
        run.log_dataset("voc", "d2", "probing", source="/data/voc", train=5, val=2)
    found = {
        one.dataset.name: one.dataset
        for one in tracker.client.get_run(run.id).inputs.dataset_inputs
    }
    assert set(found) == {"{00000..00003}.tar", "voc"}
    assert json.loads(found["voc"].profile) == {"num_rows": 7, "train": 5, "val": 2}


def test_git_commit_outside_a_checkout_is_empty(tmp_path):
    assert git_commit(tmp_path) == ""
