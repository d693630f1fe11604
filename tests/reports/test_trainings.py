"""Curves over the steps of trainings: what they show, and what they say."""

from __future__ import annotations

import numpy as np
import pytest

from benchmark.parser import main
from probes.select import Candidate, select_candidate
from reports.pages import render_page
from reports.report import ReportRequest, build_report
from reports.trainings import HeadCurve, trainings
from tests.reports.synthetic import write_runs

pytestmark = pytest.mark.integration

TASK = "nyu-depth/linear"  # lower is better
MINE = {1000: 0.40, 2000: 0.55, 3000: 0.70}  # rises
THEIRS = {1000: 0.60, 2000: 0.60, 3000: 0.45}  # is ahead, then falls


@pytest.fixture
def report(tracker, report_of):
    for training, qualities in (("mine", MINE), ("theirs", THEIRS)):
        for step, quality in qualities.items():
            tags = {"training": training, "step": str(step)}
            name = f"{training} step {step}"
            write_runs(tracker, {name: quality}, [TASK], tags=tags, sha=name)
    write_runs(tracker, {"clip": 0.5}, [TASK], sha="c")
    return report_of(tracker)


def test_checkpoints_of_a_training_are_a_curve(report):
    assert trainings(report.analysis.selection.backbones) == {
        name: {step: f"{name} step {step}" for step in MINE} for name in ("mine", "theirs")
    }
    (figure,) = report.figures["steps"]
    lines = {line["name"]: line for line in figure.spec["data"]}
    assert figure.title == TASK and lines.keys() == {"mine", "theirs"}, "clip has no step"
    for name, line in lines.items():
        assert line["x"] == [*MINE]
        numbers = [report.numbers()[f"{name} step {step}", TASK, "abs_rel"] for step in MINE]
        assert line["y"] == [number.value for number in numbers]
        assert all(line["error_y"]["array"])
    assert "lower is better" in figure.caption and "mine: " in figure.alt


def test_the_best_step_the_course_and_the_crossing_are_said(report):
    mine, theirs, crossing = report.steps
    assert mine.startswith(f"mine · {TASK}: best at step 3000") and "still rising" in mine
    assert theirs.startswith(f"theirs · {TASK}: best at step ") and "falling since" in theirs
    assert crossing == (
        f"{TASK}: theirs is ahead at step 2000, mine at step 3000: their order changes between."
    )
    page = render_page(report)
    assert "Over the steps of a training" in page and "their order changes between" in page


def test_what_is_not_decided_is_not_said(tracker, report_of):
    for step in (1, 2):
        tags = {"training": "mine", "step": str(step)}
        write_runs(tracker, {f"mine step {step}": 0.5}, [TASK], tags=tags, sha=f"s{step}")
    (line,) = report_of(tracker).steps
    assert "undecided" in line


def test_a_training_is_renamed_with_all_of_its_checkpoints(tracker, report_of, capsys):
    for step in (20, 3):
        write_runs(tracker, {f"mine step {step}": 0.5}, [TASK], sha=f"s{step}")
    where = f"--experiment {tracker.experiment} --tracking-uri {tracker.uri}".split()
    assert main(["results", "label", "mine", "longer", *where]) == 0
    assert main(["results", "list", *where]) == 0
    done, _, *lines = capsys.readouterr().out.splitlines()
    assert done == "mine is longer now, in 2 runs"
    assert [line.partition("  ")[0] for line in lines] == ["longer step 3", "longer step 20"]
    assert [*trainings(report_of(tracker).backbones)] == ["longer"]
    assert main(["results", "label", "longer step 3", "first", *where]) == 0
    assert "it has left the curve of longer, whose names end in 'step N'" in capsys.readouterr().out
    assert main(["results", "label", "first", "again step 3", *where]) == 0
    assert main(["results", "label", "longer", "again", *where]) == 0, "it joins the other"
    request = ReportRequest([tracker.experiment], backbones=["again"], tracking_uri=tracker.uri)
    assert build_report(request).backbones == ["again step 3", "again step 20"]


@pytest.mark.parametrize(
    ("losses", "fall"),
    [
        (np.linspace(2.0, 1.0, 50), "1.3 → 1.09"),
        (2.0 ** -np.arange(50.0), ""),  # it has converged
        (np.linspace(2.0, 1.0, 20), ""),  # too few points to know its noise
        (1.0 + np.random.default_rng(0).normal(0, 0.1, 50), ""),  # noise alone
        (np.linspace(1.0, 2.0, 50), ""),
    ],
)
def test_a_loss_that_falls_beyond_its_noise_at_the_end(losses, fall):
    curve = HeadCurve("clip", None, range(len(losses)), losses)
    assert curve.fall() == fall


def test_heads_that_were_still_learning_are_named(tracker, report_of):
    write_runs(tracker, {"clip": 0.5, "mine": 0.6}, [TASK])
    (cell,) = (run for run in tracker.search(task=TASK) if run.backbone == "clip")
    for step, loss in enumerate(np.linspace(2.0, 1.0, 50)):
        tracker.client.log_metric(cell.run_id, "train/loss", loss, step=step)
    _, note = select_candidate(
        [Candidate(1, "a", 1.0, 0.0, 1), Candidate(2, "b", 0.0, 0.0, 2)], "top1", 9
    )
    tracker.client.set_tag(cell.run_id, "mlflow.note.content", f"* {note}")
    report = report_of(tracker)
    (note,) = [note for note in report.notes if "edge of its grid" in note]
    assert f"{TASK} (clip)" in note
    (note,) = [note for note in report.notes if "still learning" in note]
    assert f"{TASK} (clip 1.3 → 1.09)" in note
    (figure,) = report.figures["heads"]
    assert figure.title == TASK and [line["name"] for line in figure.spec["data"]] == [
        "clip",
        "mine",
    ]
    assert "Training of the heads" in render_page(report)
