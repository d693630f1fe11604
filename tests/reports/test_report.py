"""Which runs a report is about."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from reports.records import ParentRun, Record
from reports.report import ReportRequest, build_report, select_runs
from reports.tracking import Tracker
from tests.imports import HEAVY, REPORTS, run_and_count
from tests.reports.conftest import same
from tests.reports.synthetic import stored_run, write_run

pytestmark = pytest.mark.integration


def test_presets_and_their_changes_are_caveats(tracker, report_of):
    changed = "differs from dinov3: max_iters=100 instead of 38400"
    tags = {
        "voc/linear": {"preset": "mmseg"},
        "nyu-depth/linear": {"preset": "dinov3", "differs": changed},
        "imagenet/linear": {"preset": "own"},
    }
    write_run(tracker, "clip", 0, dict.fromkeys(tags, 0.5), task_tags=tags)
    notes = "\n".join(report_of(tracker).notes)
    assert "voc/linear has the settings of mmseg" in notes
    assert f"nyu-depth/linear {changed}" in notes
    assert "imagenet/linear has" not in notes


def test_a_run_is_reported_under_its_own_protocols_and_weights():
    fields = {"backbone": "clip", "seed": 0, "weights": "a", "protocols": {"a.linear": "new"}}
    parent = ParentRun(run_id="parent", run_key="k", **fields)
    own, other = (
        stored_run(name, "a/linear", value=50.0, protocol="new", weights=weights)
        for name, weights in (("clip", "a"), ("dino", "b"))
    )

    def select_with(*more: Record, like_runs=("parent", own.run_id)):
        store = SimpleNamespace(runs=lambda _: [parent, own, other, *more])
        request = ReportRequest(["x"], like_runs=like_runs)
        _, selection, notes = select_runs(store, request)
        return {cell.run_id for cells in selection.cells.values() for cell in cells}, notes

    both = {own.run_id, other.run_id}
    assert select_with() == (both, [])
    old = stored_run("clip", "a/linear", value=40.0, protocol="old", weights="a")
    ids, (note,) = select_with(old)
    assert ids == both and note.startswith("Runs under 1 other protocol are left out")
    assert select_with(old, like_runs=()) == ({*both, old.run_id}, [])
    for changes in ({"weights": "b"}, {"weights": "a", "seed": 1}):
        ids, (note,) = select_with(
            stored_run("clip", "a/linear", value=40.0, protocol="new", **changes)
        )
        assert ids == both and note.startswith("Runs of other weights or seeds")


def test_trials_and_other_experiments_change_no_number(store, report, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    tags = {"study": "lambdas", "trial": "9"}
    with store.run("trial 9", tags=tags, params={"lambda_seg": 3}) as trial:
        pass
    write_run(store, "cliptex", 0, same(0.9), tags={"mlflow.parentRunId": trial.id})
    write_run(Tracker("other", store.uri), "cliptex", 0, same(0.9))
    again = build_report(ReportRequest(experiments=["paper"], tracking_uri=store.uri))
    values = {key: estimate.value for key, estimate in again.analysis.estimates.items()}
    assert values == {key: e.value for key, e in report.analysis.estimates.items()}


@pytest.mark.parametrize(
    ("words", "forbidden", "most"),
    [
        ("report --experiment paper", f"{HEAVY} torch sqlalchemy", 1400),
        ("results list --experiment paper", f"{HEAVY} {REPORTS} torch", 700),
    ],
)
def test_reading_the_store_imports_neither_mlflow_nor_torch(
    store, tmp_path, monkeypatch, words, forbidden, most
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", store.uri)
    run_and_count(words, forbidden, most)
