"""Reading a real MLflow store."""

from __future__ import annotations

import re
import zipfile
from contextlib import chdir
from pathlib import Path

import pytest

from reports.pages import metrics_frame
from reports.records import GALLERY, PER_IMAGE, PROTOCOL, Cell, TrackingError, metric_key
from reports.report import ReportRequest, build_report
from reports.selection import default_experiments
from reports.store import Store
from reports.tracking import Tracker
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
    runs = store.runs(["paper"])
    cells = [run for run in runs if isinstance(run, Cell)]
    assert (len(runs), {cell.backbone for cell in cells}) == (6, {"clip", "cliptex"})
    for cell in cells:
        stored = store.client.get_run(cell.run_id).data
        assert {metric_key(name) for name in cell.metrics} <= stored.metrics.keys()
        assert (stored.tags["cliptex.task"], stored.tags["cliptex.weights.sha256"]) == (
            cell.task,
            cell.weights,
        )
    assert "i2t_R@1" in {name for cell in cells for name in cell.metrics}
    (failed,) = [cell for cell in cells if cell.status == "failed"]
    assert failed.failure == "failed: RuntimeError: loss is nan" and not failed.metrics
    assert store.history(cells[0].run_id, "train/loss") == ([0, 1, 2], [3.0, 2.0, 1.0])
    assert default_experiments(store) == ["paper"]
    table = metrics_frame(cells)
    assert len(table) == sum(len(cell.metrics) for cell in cells)


def test_sqlite(filled, monkeypatch):
    monkeypatch.setattr("reports.store.PAGE", 2)  # pages are joined
    check(Store(filled.uri))


@pytest.mark.cluster
def test_postgresql(postgres_database, tmp_path):
    check(Store(fill(tmp_path, postgres_database).uri))


def test_a_history_is_thinned_but_has_both_ends(filled):
    with filled.run("long") as run:
        for step in range(1000):
            run.log_metrics({"train/loss": step}, step)
    steps, values = Store(filled.uri).history(run.id, "train/loss", most=100)
    assert len(steps) <= 102 and (steps[0], steps[-1], values[-1]) == (0, 999, 999)
    filled.client.delete_run(run.id)


def test_reading_creates_no_store_and_an_empty_one_has_no_report(tmp_path):
    with pytest.raises(TrackingError, match="there is no MLflow store at sqlite"):
        Store(f"sqlite:///{tmp_path}/other.db")
    assert not (tmp_path / "other.db").exists(), "reading creates no store"
    Tracker("empty", f"sqlite:///{tmp_path}/empty.db")
    with pytest.raises(TrackingError, match="no finished run"):
        build_report(ReportRequest(tracking_uri=f"sqlite:///{tmp_path}/empty.db"))


@pytest.mark.parametrize(
    "tag", [{"seed": "x"}, {"metrics.declared": "{"}, {"metrics.declared": "[1]"}]
)
def test_a_run_with_a_malformed_tag_is_left_out_and_named(tag, tracker, report_of):
    write_run(tracker, "clip", 0, GOOD)
    write_run(tracker, "cliptex", 0, GOOD, task_tags={"voc/linear": tag})
    report = report_of(tracker)
    assert len(report.analysis.estimates) == 2 + 6 + 6
    (note,) = [note for note in report.notes if "a tag cannot be read" in note]
    assert "(voc/linear) is left out" in note


@pytest.mark.parametrize("name", [PER_IMAGE, PROTOCOL, GALLERY, "a picture"])
def test_a_damaged_artifact_is_named(tracker, report_of, name):
    write_run(tracker, "clip", 0, {"voc/linear": 0.6}, pictures=True)
    (child,) = tracker.search(task="voc/linear")
    path = Path(child.artifacts) / (GALLERY if name == "a picture" else name)
    content = path.read_bytes()
    if name == "a picture":
        with zipfile.ZipFile(path) as pack:
            start = pack.getinfo("000-image.webp").header_offset + 60
        path.write_bytes(content[:start] + bytes(8) + content[start + 8 :])
    else:
        path.write_bytes(content[: len(content) // 2])
    expected = rf"{path.name} of run {child.run_id} .* is damaged .*--force"
    if path.name == "gallery.zip":  # the numbers do not need it
        assert re.search(expected, "\n".join(report_of(tracker).notes))
        return
    with pytest.raises(TrackingError, match=expected):
        report_of(tracker)
