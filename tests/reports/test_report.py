"""Which runs a report is about."""

from __future__ import annotations

import pytest

from reports.records import Cell, ParentRun, Record
from reports.report import ReportRequest, _like_runs, build_report
from reports.tracking import Tracker
from tests.imports import HEAVY, REPORTS, run_and_count
from tests.reports.conftest import same
from tests.reports.synthetic import write_run

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


def cell(protocol: str, weights: str = "a", seed: int = 0) -> Cell:
    fields = {"backbone": "clip", "task": "a/linear", "weights": weights, "seed": seed}
    return Cell(run_id=f"{protocol}-{weights}-{seed}", protocol=protocol, **fields)


def test_a_run_is_reported_under_its_own_protocols_and_weights():
    fields = {"backbone": "clip", "seed": 0, "weights": "a", "protocols": {"a.linear": "new"}}
    parent = ParentRun(run_id="parent", run_key="k", **fields)
    training = Record(tags={"backbone": "clip", "seed": "0"})
    other = Cell(backbone="dino", task="a/linear", protocol="new", weights="b", seed=1)
    same_runs, ids = [parent, cell("new"), training, other], ["parent", "new-a-0"]
    assert _like_runs(ids, same_runs) == (same_runs, [])
    runs, (note,) = _like_runs(ids, [*same_runs, cell("old")])
    assert runs == same_runs and note.startswith("Runs under 1 other protocol are left out")
    foreign = cell("new", "b")
    for each in (foreign, cell("new", seed=1)):
        runs, (note,) = _like_runs(ids, [*same_runs, each])
        assert runs == same_runs and note.startswith("Runs of other weights or seeds")
    assert _like_runs([], [parent, foreign]) == ([parent, foreign], [])


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
