"""Reading a real MLflow store back."""

from __future__ import annotations

import shutil
import zipfile
from pathlib import Path

import pytest
import sqlalchemy

from reports.errors import TrackingError
from reports.mlflow.query import Store, scored, tidy, why
from reports.mlflow.run import Tracker
from reports.report import Request, build
from reports.selection import default_experiments
from tests.reports.synthetic import write_run

GOOD = {"voc/linear": 0.6, "flickr30k/retrieval": 0.55}


@pytest.fixture(scope="module")
def filled(tmp_path_factory):
    folder = tmp_path_factory.mktemp("filled")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)  # artifacts go to mlruns/ of the working directory
        tracker = Tracker("paper", f"sqlite:///{folder}/mlflow.db")
        for seed in (0, 1):
            write_run(tracker, "clip", seed, GOOD)
        write_run(tracker, "cliptex", 0, GOOD, failing={"voc/linear": "loss is nan"})
    return tracker


def check(store: Store) -> None:
    runs = store.runs(["paper"])
    cells = scored(runs)
    table = tidy(cells)
    assert set(table["backbone"]) == {"clip", "cliptex"}
    assert {"i2t_R@1", "t2i_R@10"} <= set(table["metric"]), "names as the field writes them"
    for row in table.itertuples():
        stored = store.client.get_run(row.run_id).data
        assert stored.metrics[row.metric.replace("@", "_at_")] == row.value
        assert (stored.tags["task"], stored.tags["weights.sha256"]) == (row.task, row.weights)
    (broken,) = [cell for cell in cells if cell.status == "FAILED"]
    assert broken.reason == "failed: RuntimeError: loss is nan" and not broken.metrics
    steps, values = store.history(cells[0].run.id, "train/loss")
    assert (steps, values) == ([0, 1, 2], [3.0, 2.0, 1.0])


def test_sqlite(filled):
    store = Store(filled.uri)
    check(store)
    assert default_experiments(store) == ["paper"]
    assert why(next(r for r in store.runs(["paper"]) if r.status == "FAILED")).startswith("failed")


def test_more_runs_than_a_page(filled, monkeypatch):
    monkeypatch.setattr("reports.mlflow.query.PAGE", 2)
    assert len(Store(filled.uri).runs(["paper"])) == 9


def test_the_store_filters_and_few_requests_are_made(filled, monkeypatch):
    store, asked = Store(filled.uri), []
    search = store.client._client.search_runs
    monkeypatch.setattr(
        store.client._client, "search_runs", lambda *a, **k: asked.append(a[1]) or search(*a, **k)
    )
    everything = {run.id for run in store.runs(["paper"])}
    assert len(asked) == 1, "one page, one request"
    asked.clear()
    found = store.runs_about(["paper"], ["cliptex@abc"], ["voc/linear"])
    assert {(run.tags["backbone"], run.tags.get("task")) for run in found} == {
        ("cliptex", None),
        ("cliptex", "voc/linear"),
    }
    assert len(asked) == 4, (
        "the task's, its parents', studies', and whether there is anything of an older version"
    )
    asked.clear()
    assert {run.id for run in store.runs_about(["paper"], ["nobody"])} == everything, (
        "whoever looks for it says what is there"
    )
    asked.clear()
    monkeypatch.setattr("reports.mlflow.query.PAGE", 4)
    assert {run.id for run in store.runs(["paper"])} == everything
    assert 17 <= len(asked) <= 20, "more than a page is read in sixteen parts"
    protocol = {"protocol": "p-voc/linear", "backbone": "clip"}
    assert {run.tags["seed"] for run in store.runs(["paper"], protocol)} == {"0", "1"}


def test_what_a_run_refers_to_and_what_an_older_version_wrote_is_read_too(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    tracker = Tracker("paper", f"sqlite:///{tmp_path}/mlflow.db")
    first = write_run(tracker, "first", 0, {"voc/linear": 0.6})
    (child,) = [run for run in Store(tracker.uri).runs(["paper"]) if run.parent == first]
    write_run(tracker, "second", 0, {}, tags={"cached.voc.linear": child.id})
    raw = tracker.client._client
    old = raw.create_run(
        tracker.experiment_id, tags={"backbone": "second", "weights.sha256": "w", "run.key": "k"}
    )
    found = Store(tracker.uri).runs_about(["paper"], ["second"])
    assert {run.id for run in found} >= {child.id, old.info.run_id} and first not in {
        run.id for run in found
    }
    assert [cell.backbone for cell in scored(found) if cell.backbone == "second"] == ["second"]


def test_postgresql(postgres_database, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    tracker = Tracker("paper", postgres_database)
    write_run(tracker, "clip", 0, GOOD)
    write_run(tracker, "cliptex", 0, GOOD, failing={"voc/linear": "loss is nan"})
    check(Store(postgres_database))


def test_a_history_is_thinned_but_keeps_both_ends(filled):
    with filled.run("long") as run:
        for step in range(1000):
            run.log_metrics({"train/loss": step}, step)
    steps, values = Store(filled.uri).history(run.id, "train/loss", most=100)
    assert len(steps) <= 102 and (steps[0], steps[-1], values[-1]) == (0, 999, 999)
    filled.client.delete_run(run.id)


def test_what_can_be_wrong_is_one_line(filled, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(TrackingError, match=r"no experiment 'papr'.*did you mean 'paper'"):
        Store(filled.uri).runs(["papr"])
    with pytest.raises(TrackingError, match="there is no MLflow store at sqlite"):
        Store(f"sqlite:///{tmp_path}/other.db")
    assert not (tmp_path / "other.db").exists(), "reading makes no store"
    Tracker("empty", f"sqlite:///{tmp_path}/empty.db")
    with pytest.raises(TrackingError, match="no finished run"):
        build(Request(tracking_uri=f"sqlite:///{tmp_path}/empty.db"))
    newer = tmp_path / "newer.db"
    shutil.copy(filled.uri.removeprefix("sqlite:///"), newer)
    with sqlalchemy.create_engine(f"sqlite:///{newer}").begin() as connection:
        connection.execute(
            sqlalchemy.text("update alembic_version set version_num = 'from-the-future'")
        )
    with pytest.raises(TrackingError, match="newer MLflow"):
        Store(f"sqlite:///{newer}")


def test_a_damaged_artifact_is_named(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    tracker = Tracker("paper", f"sqlite:///{tmp_path}/mlflow.db")
    parent = write_run(tracker, "clip", 0, {"voc/linear": 0.6}, pictures=True)
    (child,) = [run for run in Store(tracker.uri).runs(["paper"]) if run.parent == parent]
    for name in ("per_image.npz", "protocol.json", "pictures/gallery.zip"):
        path = Path(child.artifacts) / name
        whole = path.read_bytes()
        path.write_bytes(whole[: len(whole) // 2])
        with pytest.raises(
            TrackingError, match=rf"{path.name} of run {child.id} .* is damaged .*--force"
        ) as caught:
            build(Request(tracking_uri=tracker.uri))
        assert "\n" not in str(caught.value)
        path.write_bytes(whole)
    path = Path(child.artifacts) / "pictures/gallery.zip"
    whole = path.read_bytes()
    with zipfile.ZipFile(path) as pack:  # one picture inside, the list of contents being whole
        place = pack.getinfo("000-image.png").header_offset + 60
    path.write_bytes(whole[:place] + bytes(8) + whole[place + 8 :])
    with pytest.raises(TrackingError, match=rf"gallery.zip of run {child.id} .* is damaged"):
        build(Request(tracking_uri=tracker.uri))
    path.write_bytes(whole)
    assert build(Request(tracking_uri=tracker.uri)).verdict.tone == "alone"
