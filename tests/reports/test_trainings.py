"""Curves over the steps of trainings: what they show, and what they say."""

from __future__ import annotations

import pytest

from benchmark.parser import main
from reports.pages import render_page
from reports.report import ReportRequest, build_report
from reports.trainings import trainings
from tests.reports.synthetic import write_run

pytestmark = pytest.mark.integration

TASK = "nyu-depth/linear"  # lower is better
MINE = {1000: 0.40, 2000: 0.55, 3000: 0.70}  # rises
THEIRS = {1000: 0.60, 2000: 0.60, 3000: 0.45}  # is ahead, then falls


@pytest.fixture
def report(tracker, report_of):
    for training, qualities in (("mine", MINE), ("theirs", THEIRS)):
        for step, quality in qualities.items():
            tags = {"training": training, "step": str(step)}
            write_run(
                tracker,
                f"{training} step {step}",
                0,
                {TASK: quality},
                tags=tags,
                sha=f"{training}{step}",
            )
    write_run(tracker, "clip", 0, {TASK: 0.5}, sha="c")
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
        write_run(tracker, f"mine step {step}", 0, {TASK: 0.5}, tags=tags, sha=f"s{step}")
    (line,) = report_of(tracker).steps
    assert "undecided" in line


def test_a_training_is_renamed_with_all_of_its_checkpoints(tracker, report_of, capsys):
    for step in (20, 3):
        write_run(tracker, f"mine step {step}", 0, {TASK: 0.5}, sha=f"s{step}")
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
