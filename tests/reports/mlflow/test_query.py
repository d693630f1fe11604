"""Reading a real MLflow store."""

from __future__ import annotations

import zipfile
from contextlib import chdir
from pathlib import Path

import pytest

from reports.artifacts import GALLERY, PER_IMAGE, PROTOCOL
from reports.cell import Cell
from reports.errors import TrackingError
from reports.mlflow.query import Store, tidy
from reports.mlflow.run import Tracker
from reports.report import Request, build
from reports.selection import default_experiments, select
from tests.reports.synthetic import write_run

pytestmark = pytest.mark.integration

GOOD = {"voc/linear": 0.6, "flickr30k/retrieval": 0.55}


def fill(folder: Path, uri: str = "") -> Tracker:
    with chdir(folder):
        tracker = Tracker("paper", uri or f"sqlite:///{folder}/mlflow.db")
        write_run(tracker, "clip", 0, GOOD)
        write_run(tracker, "cliptex", 0, GOOD, failing={"voc/linear": "loss is nan"})
    return tracker


@pytest.fixture(scope="module")
def filled(tmp_path_factory):
    return fill(tmp_path_factory.mktemp("filled"))


def check(store: Store) -> None:
    cells = [run for run in store.runs(["paper"]) if isinstance(run, Cell)]
    table = tidy(cells)
    assert set(table["backbone"]) == {"clip", "cliptex"}
    assert {"i2t_R@1", "t2i_R@10"} <= set(table["metric"])
    for row in table.itertuples():
        stored = store.client.get_run(row.run_id).data
        assert stored.metrics[row.metric.replace("@", "_at_")] == row.value
        assert (stored.tags["task"], stored.tags["weights.sha256"]) == (row.task, row.weights)
    (failed,) = [cell for cell in cells if cell.status == "failed"]
    assert failed.failure == "failed: RuntimeError: loss is nan" and not failed.metrics
    assert store.history(cells[0].run_id, "train/loss") == ([0, 1, 2], [3.0, 2.0, 1.0])
    assert default_experiments(store) == ["paper"]


def test_sqlite(filled):
    check(Store(filled.uri))


@pytest.mark.cluster
def test_postgresql(postgres_database, tmp_path):
    check(Store(fill(tmp_path, postgres_database).uri))


def test_pages_are_joined(filled, monkeypatch):
    monkeypatch.setattr("reports.mlflow.client.PAGE", 2)
    assert len(Store(filled.uri).runs(["paper"])) == 6


def child_of(tracker: Tracker, parent: str) -> Cell:
    (child,) = [r for r in Store(tracker.uri).runs([tracker.experiment]) if r.parent == parent]
    return child


def test_a_reused_run_is_read_with_the_run_that_reused_it(tracker):
    first = write_run(tracker, "first", 0, {"voc/linear": 0.6})
    child = child_of(tracker, first)
    write_run(tracker, "second", 0, {}, tags={"cached.voc.linear": child.run_id})
    runs = Store(tracker.uri).runs([tracker.experiment])
    cells = select(runs, [tracker.experiment]).cells
    assert {name: cell.run_id for (name, _), (cell,) in cells.items()} == {
        "first": child.run_id,
        "second": child.run_id,
    }


def test_a_history_is_thinned_but_has_both_ends(filled):
    with filled.run("long") as run:
        for step in range(1000):
            run.log_metrics({"train/loss": step}, step)
    steps, values = Store(filled.uri).history(run.id, "train/loss", most=100)
    assert len(steps) <= 102 and (steps[0], steps[-1], values[-1]) == (0, 999, 999)
    filled.client.delete_run(run.id)


def test_unknown_experiments_and_stores(filled, tmp_path):
    with pytest.raises(TrackingError, match=r"no experiment 'papr'.*did you mean .*paper"):
        Store(filled.uri).runs(["papr"])
    with pytest.raises(TrackingError, match="there is no MLflow store at sqlite"):
        Store(f"sqlite:///{tmp_path}/other.db")
    assert not (tmp_path / "other.db").exists(), "reading creates no store"
    Tracker("empty", f"sqlite:///{tmp_path}/empty.db")
    with pytest.raises(TrackingError, match="no finished run"):
        build(Request(tracking_uri=f"sqlite:///{tmp_path}/empty.db"))


@pytest.mark.parametrize("name", [PER_IMAGE, PROTOCOL, GALLERY, "a picture"])
def test_a_damaged_artifact_is_named(tracker, report_of, name):
    child = child_of(tracker, write_run(tracker, "clip", 0, {"voc/linear": 0.6}, pictures=True))
    path = Path(child.artifacts) / (GALLERY if name == "a picture" else name)
    content = path.read_bytes()
    if name == "a picture":
        with zipfile.ZipFile(path) as pack:
            start = pack.getinfo("000-image.webp").header_offset + 60
        path.write_bytes(content[:start] + bytes(8) + content[start + 8 :])
    else:
        path.write_bytes(content[: len(content) // 2])
    expected = rf"{path.name} of run {child.run_id} .* is damaged .*--force"
    with pytest.raises(TrackingError, match=expected):
        report_of(tracker)
