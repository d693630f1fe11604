"""Which runs a report is about."""

from __future__ import annotations

from types import SimpleNamespace

from reports.mlflow.run import Tracker
from reports.report import Request, _as_in, build
from tests.reports.conftest import same
from tests.reports.synthetic import write_run


def test_published_protocols_and_what_was_changed_beside_them_are_said(
    store, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    tracker = Tracker("published", store.uri)
    changed = {"preset": "dinov3", "differs": "differs from dinov3: max_iters=100 instead of 38400"}
    tags = {
        "voc/linear": {"preset": "mmseg"},
        "nyu-depth/linear": changed,
        "imagenet/linear": {"preset": "own"},
    }
    write_run(tracker, "clip", 0, {**dict.fromkeys(tags, 0.5)}, task_tags=tags)
    notes = build(Request(experiments=["published"], tracking_uri=tracker.uri)).notes
    assert (
        "voc/linear has the settings of mmseg (what else its source does: list protocols)." in notes
    )
    assert (
        f"nyu-depth/linear {changed['differs']} (what else its source does: list protocols)."
        in notes
    )
    assert not [note for note in notes if note.startswith("imagenet/linear")]


def test_a_run_is_reported_under_its_own_protocols_and_weights():
    who = {"backbone": "clip", "seed": "0", "weights.sha256": "a"}
    parent = SimpleNamespace(id="parent", tags={**who, "protocol.a.linear": "new"})
    mine = SimpleNamespace(id="mine", tags={**who, "task": "a/linear", "protocol": "new"})
    older = SimpleNamespace(id="older", tags={**who, "task": "a/linear", "protocol": "old"})
    training = SimpleNamespace(
        id="training", tags={"backbone": "clip", "seed": "0", "stage": "train"}
    )
    runs = [parent, mine, older, training]
    kept, told = _as_in(["parent"], runs)
    assert kept == [parent, mine, training] and told[0].startswith(
        "Runs under 1 other protocol are left out"
    )
    assert _as_in(["parent"], [parent, mine]) == ([parent, mine], [])
    assert _as_in([], runs) == (runs, [])

    others = SimpleNamespace(id="others", tags={**mine.tags, "weights.sha256": "b"})
    seed = SimpleNamespace(id="seed", tags={**others.tags, "seed": "1"})
    kept, told = _as_in(["parent"], [parent, mine, others, seed])
    assert kept == [parent, mine, seed] and told[0].startswith(
        "Runs of other weights under the same names are left out"
    )


def test_failed_and_foreign_runs_change_no_number(store, report, tmp_path, monkeypatch):
    """A trial of a sweep with tasks of its own, and another experiment, leave every number as it
    was."""
    monkeypatch.chdir(tmp_path)  # where the other experiment keeps its artifacts
    before = {key: found.value for key, found in report.analysis.estimates.items()}
    with store.run(
        "trial 9", tags={"study": "lambdas", "trial": "9"}, params={"lambda_seg": 3}
    ) as trial:
        pass
    write_run(store, "cliptex", 0, same(0.9), tags={"mlflow.parentRunId": trial.id})
    write_run(Tracker("other", store.uri), "cliptex", 0, same(0.9))
    again = build(Request(experiments=["paper"], tracking_uri=store.uri))
    assert {key: found.value for key, found in again.analysis.estimates.items()} == before
