"""Runs are nested, batched, and end as they should – in a real MLflow store."""

from __future__ import annotations

import contextlib
import gc
import json
import os
import signal
import tempfile
import threading
import time
import weakref
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import pytest
from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

from cliptex_common.files import acquire_liveness_lock, home, write_text
from reports.provenance import git_commit
from reports.records import TrackingError, metric_key, metric_name
from reports.store import FAILURE_TAG, PARENT_TAG, Store
from reports.tracking import SILENT_SECONDS, TIME_TAG, Tracker
from tests.forks import Fork

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def uri(tmp_path_factory):
    folder = tmp_path_factory.mktemp("store")
    with contextlib.chdir(folder):
        yield f"sqlite:///{folder}/mlflow.db"


@pytest.fixture
def tracker(uri, request):
    return Tracker(request.node.name, uri)


@pytest.fixture
def by_mlflow(tracker):
    """Writes as to a server, by MLflow's client."""
    tracker.client._database = None
    _ = tracker.client._client
    return tracker


def stored(run):
    return run.tracker.client._client.get_run(run.id)


def test_parent_child_metrics_and_artifacts(tracker):
    with (
        tracker.run("parent", tags={"backbone": "x"}, params={"seed": 0}) as parent,
        tracker.run("voc/linear", tags={"task": "voc/linear"}, parent=parent) as child,
    ):
        for step in range(1203):
            child.log_metrics({"train/loss": 1 / (step + 1)}, step)
        child.log_metrics({"mIoU": 41.5, "i2t_R@1": 7.0, "missing": float("nan")})
        child.log_text("a = 1\n", "config.py")
        child.log_json({"mIoU": 41.5}, "metrics.json")
        child.log_dataset("voc", "d2", "probing", source="/data/voc", train=5, val=2)
        child.log_dataset("/some/where/{00000..00003}.tar", "d1", "training", pairs=7)
    run, client = stored(child), tracker.client
    assert run.info.status == stored(parent).info.status == "FINISHED"
    assert run.data.tags[PARENT_TAG] == parent.id
    assert run.data.metrics["mIoU"] == 41.5 and "missing" not in run.data.metrics
    assert run.data.metrics[metric_key("i2t_R@1")] == 7.0
    history = client.get_metric_history(child.id, "train/loss")
    assert sorted(metric.step for metric in history) == list(range(1203))
    assert {f.path for f in client.list_artifacts(child.id)} == {"config.py", "metrics.json"}
    datasets = {each.dataset.name: each.dataset for each in run.inputs.dataset_inputs}
    assert set(datasets) == {"{00000..00003}.tar", "voc"}
    assert json.loads(datasets["voc"].profile) == {"num_rows": 7, "train": 5, "val": 2}
    assert tracker.finished(task="voc/linear").run_id == child.id
    assert tracker.finished(task="other") is None


@pytest.mark.parametrize(
    ("error", "status", "reason"),
    [
        (ValueError("loss is nan"), "FAILED", "ValueError: loss is nan"),
        (KeyboardInterrupt(), "KILLED", "interrupted"),
    ],
)
def test_an_error_ends_the_run(tracker, error, status, reason):
    with pytest.raises(type(error)), tracker.run("breaks") as run:
        run.log_metrics({"train/loss": 3.0}, 1)
        raise error
    assert stored(run).info.status == status
    assert stored(run).data.tags[FAILURE_TAG] == reason
    assert stored(run).data.metrics == {"train/loss": 3.0}


def test_a_resumed_run_goes_on_and_repeats_nothing(tracker):
    numbers = {"mIoU": 41.5, "mAcc": 60.0, "cost/seconds": 9.0}
    with pytest.raises(RuntimeError), tracker.run("r", params={"a": 1}) as run:
        for step in (1, 2, 3):
            run.log_metrics({"train/loss": step, "select/lr": 0.1}, step)
        run.log_metrics(numbers)
        raise RuntimeError("killed after its state of step 1")
    with tracker.run("r", params={"a": 2, "b": 3}, resume=run.id) as again:
        assert stored(run).info.status == "RUNNING"
        for step in (2, 3, 4):
            again.log_metrics({"train/loss": step}, step)
        again.log_metrics({"mIoU": 41.5, "mAcc": 61.0, "cost/seconds": 2.0})
    data = stored(run).data
    assert again.id == run.id and stored(run).info.status == "FINISHED"
    assert FAILURE_TAG not in data.tags
    assert data.params == {"a": "1", "b": "3"}, "a killed process wrote no b"
    history = tracker.client.get_metric_history(run.id, "train/loss")
    assert sorted(each.step for each in history) == [1, 2, 3, 4]
    assert len(tracker.client.get_metric_history(run.id, "mIoU")) == 1
    assert data.metrics.items() >= {**numbers, "mAcc": 61.0}.items()
    alive = weakref.ref(again)
    del again
    gc.collect()
    assert alive() is None, "nothing keeps a finished run"


def hold_a_run(uri, marker, experiment):
    def stop(*_):
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, stop)
    with Tracker(experiment, uri).run("victim") as run:
        write_text(marker, run.id)
        while True:  # a signal that comes just before it sleeps is seen soon after
            time.sleep(0.1)


def hold_a_run_beside_a_child(uri, marker):
    if os.fork() == 0:  # what a child does says nothing of its parent
        time.sleep(5)
        os._exit(0)
    hold_a_run(uri, marker, "killed")


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_no_run_stays_running_when_its_process_is_killed(uri, number, tmp_path):
    victim = Fork(hold_a_run_beside_a_child, uri, tmp_path / "run-id", output=tmp_path / "output")
    victim.wait_for(tmp_path, "run-id")
    run_id = (tmp_path / "run-id").read_text()
    tracker = Tracker("killed", uri)
    assert tracker.close_stale() == [], "a living process keeps its run"
    victim.signal(number)
    victim.end()
    acquire_liveness_lock(home() / "processes")  # as the next process does: it removes the file
    assert tracker.close_stale() == (["victim"] if number == signal.SIGKILL else [])
    run = tracker.client.get_run(run_id)
    assert run.info.status == "KILLED" and run.data.tags[FAILURE_TAG]


@contextlib.contextmanager
def as_another_user():
    """Without the permissions of root, who may read everything."""
    if os.geteuid():
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


@contextlib.contextmanager
def another_machine(home):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("reports.tracking.machine", lambda: "elsewhere")
        yield


def another_container(home):
    """The same host and boot, and another folder at the path of the home."""
    home.rename(home.with_name("of another container"))
    (home / "processes").mkdir(parents=True)
    return contextlib.nullcontext()


def another_users_home(home):
    home.chmod(0)
    return as_another_user()


def another_users_lock(home):
    for path in (home / "processes").iterdir():
        path.chmod(0o444)
    return as_another_user()


@pytest.fixture
def victim(monkeypatch):
    """A process that holds a run in a home of its own; with it the folder of its home and store."""
    with tempfile.TemporaryDirectory() as name:  # pytest's own folders are closed to other users
        folder = Path(name)
        monkeypatch.setenv("CLIPTEX_HOME", str(folder / "home"))
        uri = Tracker("shared", f"sqlite:///{folder}/mlflow.db").uri
        fork = Fork(hold_a_run, uri, folder / "run-id", "shared", output=folder / "log")
        try:
            fork.wait_for(folder, "run-id")
            for path in (folder, folder / "mlflow.db"):
                path.chmod(0o777)
            monkeypatch.setenv("CLIPTEX_HOME", str(folder / "mine"))
            yield fork, folder
        finally:
            if fork.process.is_alive():
                fork.signal(signal.SIGKILL)
            fork.end()
            (folder / "home").chmod(0o700)


@pytest.mark.parametrize(
    "place", [another_machine, another_container, another_users_home, another_users_lock]
)
def test_where_a_lock_cannot_be_seen_the_last_sign_of_life_decides(place, victim):
    fork, folder = victim
    tracker = Tracker("shared", f"sqlite:///{folder}/mlflow.db")
    run_id = (folder / "run-id").read_text()
    with place(folder / "home"):
        assert tracker.close_stale() == []
        assert tracker.client.get_run(run_id).info.status == "RUNNING"
        fork.signal(signal.SIGKILL)
        fork.end()
        assert tracker.close_stale() == [], "nobody here can know that it has ended"
        silent = time.time() - SILENT_SECONDS - 60
        tracker.client.set_tags(run_id, {TIME_TAG: f"{silent:.0f}"})
        assert tracker.close_stale() == ["victim"]


def refuse(*_, **__):
    from mlflow.exceptions import MlflowException

    raise MlflowException("API request failed: connection refused\nand more")


@pytest.fixture
def requests(by_mlflow, monkeypatch):
    """The requests to the store in their order, as name → what of a run it is about; ``refused``
    of it are refused, each as often as it says."""
    client, refused, sent = by_mlflow.client, Counter[str](), list[str]()

    def watch(owner, name, subject):
        method = getattr(owner, name)

        def call(run_id, *args, **kwargs):
            about = subject(*args, **kwargs)
            if refused[about]:
                refused[about] -= 1
                refuse()
            sent.append(about)
            return method(run_id, *args, **kwargs)

        monkeypatch.setattr(owner, name, call, raising=False)

    def in_batch(metrics=(), params=(), tags=()):
        return " ".join(f"{each.key}={each.value}" for each in (*metrics, *params, *tags))

    watch(client._client, "log_batch", in_batch)
    watch(client._client, "log_inputs", lambda *_, **__: "dataset")
    watch(client._client, "set_terminated", lambda status: status)
    watch(client, "log_files", lambda files: next(iter(files)))
    return SimpleNamespace(refused=refused, sent=sent)


@pytest.mark.parametrize("refused", [slice(0, 6), slice(0, 6, 2), slice(1, 6, 2)])
def test_what_the_store_refused_is_sent_before_what_came_later(by_mlflow, requests, refused):
    expected = ["train/loss=2.0", "lr=0.1", "cliptex.note=early", "dataset", "config.py"]
    expected += ["cliptex.note=late", "FINISHED"]
    requests.refused.update(expected[refused])
    with by_mlflow.run("r") as run:
        run.log_metrics({"train/loss": 2.0}, 7)
        run._send()
        run.log_params({"lr": 0.1})
        run.set_tags({"note": "early"})
        run.log_dataset("voc", "d2", "probing")
        run.log_text("a = 1", "config.py")
        run.set_tags({"note": "late"})
    assert requests.sent == expected
    data = stored(run).data
    assert (data.metrics, data.params) == ({"train/loss": 2.0}, {"lr": "0.1"})
    assert data.tags["cliptex.note"] == "late" and stored(run).inputs.dataset_inputs
    assert [file.path for file in by_mlflow.client.list_artifacts(run.id)] == ["config.py"]


def test_nothing_is_sent_after_the_end_of_a_run(by_mlflow, requests, monkeypatch):
    """Also where the store refuses a part of it for good, and is slow."""
    requests.refused["cliptex.note=refused"] = 99
    log_dataset, has_ended = by_mlflow.client._client.log_dataset, threading.Event()

    def slowly(*arguments):
        has_ended.wait(2)
        log_dataset(*arguments)

    monkeypatch.setattr(by_mlflow.client._client, "log_dataset", slowly, raising=False)
    with pytest.raises(TrackingError, match="connection refused"), by_mlflow.run("r") as run:
        run.set_tags({"note": "refused"})
        run.log_dataset("voc", "d2", "probing")
        run.log_params({"lr": 0.1})
    has_ended.set()
    by_mlflow._pool.shutdown()
    assert requests.sent[-1] == stored(run).info.status == "FAILED"


def test_a_store_that_fails_is_a_users_error_and_hides_no_other(by_mlflow, monkeypatch):
    for name in ("log_batch", "set_tag", "set_terminated"):
        monkeypatch.setattr(by_mlflow.client._client, name, refuse)
    with pytest.raises(TrackingError, match="connection refused"), by_mlflow.run("r") as run:
        run.log_metrics({"train/loss": 2.0})
    with pytest.raises(KeyboardInterrupt), by_mlflow.run("r"):
        raise KeyboardInterrupt


@pytest.mark.parametrize("error", [None, ZeroDivisionError])
def test_a_slow_server_blocks_nothing_and_gets_all_in_order(by_mlflow, monkeypatch, error):
    log_batch, steps, answer = by_mlflow.client._client.log_batch, [], threading.Event()

    def slowly(run_id, metrics=(), **rest):
        assert answer.wait(60)
        steps.extend(metric.step for metric in metrics)
        return log_batch(run_id, metrics=metrics, **rest)

    monkeypatch.setattr(by_mlflow.client._client, "log_batch", slowly)
    with contextlib.suppress(ZeroDivisionError), by_mlflow.run("r") as run:
        for step in range(2200):  # four full batches, and a part
            run.log_metrics({"train/loss": 1.0}, step)
        assert not steps
        answer.set()
        if error:
            raise error
    assert steps == list(range(2200))
    assert stored(run).info.status == ("FAILED" if error else "FINISHED")


def test_a_process_forked_while_artifacts_are_written_can_use_temporary_files(uri, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", None)  # as in a process that has used none
    monkeypatch.setattr(tempfile, "_name_sequence", None)
    Tracker("own", uri)
    monkeypatch.setattr(tempfile, "_once_lock", None)  # taking it fails
    tempfile.TemporaryDirectory().cleanup()


@pytest.mark.parametrize(
    ("name", "key"),
    [("t2i_R@10", "t2i_R_at_10"), ("lr_1e+06", "lr_1e06"), ("a:layers=50%", "a:layers-50pct")],
)
def test_names_that_mlflow_accepts(name, key):
    assert metric_key(name) == key and metric_name(key, [name]) == name
    assert metric_name("t2i_R_at_10") == "t2i_R@10"


def test_own_tags_have_a_prefix_in_mlflow(tracker):
    with (
        tracker.run("parent", tags={"backbone": "x", "metrics.main": "a/b"}) as parent,
        tracker.run("child", parent=parent),
    ):
        pass
    for run in tracker.client._client.search_runs([tracker.experiment_id]):
        own = {name for name in run.data.tags if not name.startswith("mlflow.")}
        assert own and all(name.startswith("cliptex.") for name in own)
        assert {"mlflow.user", "mlflow.source.name", "mlflow.runName"} <= set(run.data.tags)
        assert run.data.tags.get("cliptex.git.commit", "") == git_commit()
    (match,) = tracker.search(**{"backbone": "x", "metrics.main": "a/b"})
    assert match.run_id == parent.id and match.tags["backbone"] == "x"


def test_system_metrics_are_logged_but_not_read(tracker, monkeypatch):
    has_started = threading.Event()

    class Monitor(SystemMetricsMonitor):
        """Has a sample at once."""

        def start(self):
            self.publish_metrics({"cpu_utilization_percentage": 1.0})
            has_started.set()

    module = "mlflow.system_metrics.system_metrics_monitor"
    monkeypatch.setattr(f"{module}.SystemMetricsMonitor", Monitor)
    monkeypatch.setattr("reports.tracking.MONITORED_AFTER", 0)
    monkeypatch.delenv("MLFLOW_DISABLE_TELEMETRY", raising=False)
    with tracker.run("r", monitored=True) as run:
        assert has_started.wait(60) and os.environ["MLFLOW_DISABLE_TELEMETRY"] == "true"
        run.log_metrics({"mAP_at_50": 3.0, "val/i2t_R@1": 2.0})
    assert any(name.startswith("system/") for name in stored(run).data.metrics)
    (read,) = Store(tracker.uri).runs([tracker.experiment])
    assert read.metrics == {"mAP_at_50": 3.0, "val/i2t_R@1": 2.0}
