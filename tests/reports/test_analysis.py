"""Metrics are what their probes declare, and per-image scores reproduce the stored numbers."""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np
import pytest

from reports.comparison import shown_metrics
from reports.pages import render_page
from reports.records import KIND_LEVELS, Cell, Metric
from reports.summary import caveats
from reports.tables import overview
from tests.reports import synthetic
from tests.reports.synthetic import TASKS as KINDS
from tests.reports.synthetic import stored_runs, write_run, write_runs


def test_the_scores_of_every_kind_reproduce_its_metrics(tracker, report_of):
    write_runs(tracker, {"clip": 0.5, "cliptex": 0.8}, KINDS, range(2))
    report = report_of(tracker)
    analysis = report.analysis
    classes = {(table.title, table.metric) for table in report.classes}
    assert classes == {("voc/linear", "IoU"), ("coco/ssd", "box AP")}
    assert analysis.inconsistent == []
    assert not any("No per-image scores" in note for note in report.notes)
    assert [column.task for column in report.columns] == list(KINDS)
    shown = {(c.kind, name) for c in report.columns for name in shown_metrics(c)}
    assert {(column.kind, metric) for _, column, metric in analysis.estimates} == shown
    for key, estimate in analysis.estimates.items():
        assert estimate.images == 60, key
        assert estimate.low < estimate.high or estimate.value == 100, key
    for gap in analysis.differences.values():
        assert gap.images == 60 and gap.seeds == 2


def test_gains_of_levels_are_judged_with_the_others(tracker, report_of, monkeypatch):
    tasks = dict.fromkeys(("nyu-depth/linear", "nyu-normal/linear", "voc/linear"), 0.5)
    better = {**tasks, "nyu-depth/linear": 0.8}
    for seed in range(3):
        write_run(tracker, "clip", seed, tasks)
        write_run(tracker, "cliptex", seed, better)
    report = report_of(tracker)
    before = report.analysis
    assert not before.level_gains and not report.figures["levels"], "no task is of low level"

    monkeypatch.setitem(KIND_LEVELS, "depth", "low")
    report = report_of(tracker)
    analysis = report.analysis
    gains = {level: gain for (_, level), gain in analysis.level_gains.items()}
    assert {level: [c.task for c in gain.columns] for level, gain in gains.items()} == {
        "low": ["nyu-depth/linear"],
        "mid": ["nyu-normal/linear"],
        "high": ["voc/linear"],
    }
    verdicts = {level: gain.mean.verdict() for level, gain in gains.items()}
    assert verdicts == {"low": "win", "mid": "tie", "high": "tie"}
    for name, gain in before.gains.items():
        assert gain.mean.value == analysis.gains[name].mean.value
    assert analysis.statements == before.statements + 3
    (line,) = report.levels
    assert line.startswith("cliptex over clip: low level +") and line.count("(undecided)") == 2
    (figure,) = report.figures["levels"]
    (curve,) = figure.spec["data"]
    assert curve["y"] == [gain.mean.value for gain in gains.values()]
    assert "Low, mid and high level" in render_page(report)


def test_a_metric_of_another_package_is_what_it_declares(analysis_of):
    declared = {"mIoU": Metric(-1, "px", 0.0, None, "end-point error")}
    values = lambda _, index, seed: 400.0 - 200 * index + (30.0 + index) * seed
    analysis = analysis_of(stored_runs(values, ["flow/linear"], declared=declared), 200)
    (column,) = analysis.selection.columns
    (head,) = overview(analysis).columns
    assert (head.label, head.unit, head.direction) == ("end-point error", "px", -1)
    assert analysis.estimates["clip", column, "mIoU"].high > 430, "not a percentage"
    assert analysis.outcome("mine", column) == "win"


def test_a_resample_with_nothing_to_score_is_reported(tracker, report_of, monkeypatch):
    complete = synthetic.scores

    def sparse(*args):
        """Three images with ground truth: one resample in twenty has none of them."""
        arrays, detections = complete(*args)
        arrays["abs_rel"][3:] = np.nan
        return arrays, detections

    monkeypatch.setattr(synthetic, "scores", sparse)
    write_runs(tracker, {"clip": 0.5, "cliptex": 0.8}, ["nyu-depth/linear"])
    report = report_of(tracker)
    (column,) = report.columns
    assert report.analysis.estimates["clip", column, "abs_rel"].images == 60
    (note,) = [note for note in report.notes if "nothing to score" in note]
    assert re.search(r"clip · nyu-depth/linear · abs_rel \(\d\d of 1000\)", note)


def test_variants_of_a_task_do_not_cost_the_others_power(analysis_of):
    """A fifth task raises the bar for all; two more shares of a train set do not."""

    def level(*tasks: str) -> float:
        rng = np.random.default_rng(0)
        analysis = analysis_of(stored_runs(lambda *_: 50 + rng.normal(), tasks), 200)
        column = analysis.selection.columns[-1]
        return analysis.differences["mine", column, "mIoU"].level

    shares = ["voc/linear", "voc/linear:0.1", "voc/linear:0.01"]
    two_tasks = level("voc/linear", "ade20k/linear")
    assert level(*shares, "ade20k/linear") == pytest.approx(two_tasks)
    four = level("voc/linear", "a/linear", "b/linear", "ade20k/linear")
    assert four == pytest.approx(two_tasks / 2)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_scores_that_are_not_finite_are_refused_by_name(tracker, report_of, monkeypatch, value):
    """Three images of one backbone."""
    complete = synthetic.scores

    def damaged(kind, quality, *args):
        arrays, detections = complete(kind, quality, *args)
        if quality == 0.8:
            arrays["abs_rel"][:3] = value
        return arrays, detections

    monkeypatch.setattr(synthetic, "scores", damaged)
    write_runs(tracker, {"clip": 0.5, "cliptex": 0.8}, ["nyu-depth/linear"])
    report = report_of(tracker)
    problem = "3 of 60 images have no finite score"
    assert f"Not used: nyu-depth/linear · cliptex: {problem}." in report.notes
    (number,) = [n for n in report.overview.numbers if n.backbone == "cliptex"]
    assert number.missing == problem and "no task" in report.summary.headline


def test_scores_of_other_images_are_refused(tracker, report_of):
    write_runs(tracker, {"clip": 0.5}, ["imagenet/linear"], range(2))
    write_runs(tracker, {"mine": 0.5}, ["imagenet/linear"], images=59)
    notes = report_of(tracker).notes
    assert any("imagenet/linear · mine: its scores are of other images" in note for note in notes)


def test_scores_that_do_not_reproduce_the_number_are_not_used(tracker, report_of):
    """An AbsRel of 0.05 that is off by 2 %."""
    write_runs(tracker, {"clip": 0.9}, ["nyu-depth/linear"])
    (child,) = tracker.search(task="nyu-depth/linear")
    value = child.metrics["abs_rel"]
    tracker.client.log_metric(child.run_id, "abs_rel", value + 0.001)
    report = report_of(tracker)
    (column,) = report.columns
    estimates = report.analysis.estimates
    assert value < 0.25 and not estimates["clip", column, "abs_rel"].has_interval
    assert estimates["clip", column, "rmse"].has_interval
    assert any("do not reproduce the stored number" in note for note in report.notes)


def test_a_further_metric_is_marked_where_the_main_one_is(analysis_of):
    """Two tasks, on one of which the main metric is equal, and a third one without it."""
    both = {"mIoU": Metric(), "mAcc": Metric(shown=True)}

    def values(row: int, index: int, seed: int) -> dict[str, float]:
        noise = 0.1 * seed
        main = [{"mIoU": 50.0 + 9 * index + noise}, {"mIoU": 50.0 + noise}, {}]
        return {**main[row], "mAcc": 60.0 + 9 * index + noise}

    runs = stored_runs(values, ["a/linear", "b/linear", "c/linear"], declared=both)
    analysis = analysis_of(runs, 200)
    marks = {
        (column.task[0], metric): (gap.verdict(), analysis.best[column, metric])
        for (_, column, metric), gap in analysis.differences.items()
    }
    assert marks == {
        ("a", "mIoU"): ("win", "mine"),
        ("a", "mAcc"): ("win", "mine"),
        ("b", "mIoU"): ("tie", ""),
        ("b", "mAcc"): ("tie", ""),
        ("c", "mAcc"): ("unknown", ""),
    }


def test_of_two_that_beat_the_baseline_only_a_clear_first_is_the_best(analysis_of):
    numbers = {"even": (50.0, 59.0, 59.1), "clear": (50.0, 59.0, 68.0), "lost": (70.0, 59.0, 59.0)}
    values = lambda row, index, seed: [*numbers.values()][row][index] + 0.1 * seed * (-1) ** index
    tasks = [f"{task}/linear" for task in numbers]
    runs = stored_runs(values, tasks, ("clip", "one", "two"))
    analysis = analysis_of(runs, 200)
    best = {column.task: name for (column, _), name in analysis.best.items()}
    assert best == {"even/linear": "", "clear/linear": "two", "lost/linear": "clip"}
    (even,) = (column for column in analysis.selection.columns if column.task == "even/linear")
    assert {analysis.outcome(name, even) for name in ("one", "two")} == {"win"}


SEEDS = {
    "one task lacks a seed": ((0, 1, 2), (0, 1, 2), (1, 2)),
    "one task has more": ((0, 1), (0, 1), (0, 1, 2, 3)),
    "one task has a single one": ((0, 1, 2), (0, 1, 2), (2,)),
}


def runs_with_seeds(seeds: Sequence[Sequence[int]]) -> list[Cell]:
    """Of three tasks, each with its own seeds."""
    noise = np.random.default_rng(0).normal(0, 0.2, (3, 2, 6))
    tasks = dict(zip(("a/linear", "b/linear", "c/linear"), seeds, strict=True))
    values = lambda row, index, seed: 50.0 + index * (2 - row) + noise[row, index, seed]
    runs = stored_runs(values, tasks, seeds=range(6))
    return [run for run in runs if run.seed in tasks[run.task]]


@pytest.mark.parametrize("name", SEEDS)
def test_a_mean_gain_is_over_all_tasks_and_the_seeds_that_all_have(name, analysis_of):
    runs = runs_with_seeds(SEEDS[name])
    analysis = analysis_of(runs, 200)
    gain = analysis.gains["mine"]
    assert len(gain.columns) == 3 and not analysis.excluded
    shared = sorted(set.intersection(*map(set, SEEDS[name])))
    only = analysis_of([run for run in runs if run.seed in shared], 200).gains["mine"].mean
    assert (gain.mean.value, gain.mean.reach()) == (only.value, only.reach())
    assert gain.mean.seeds == len(shared) and gain.mean.is_judged == (len(shared) > 1)
    (note,) = [note for note in caveats(analysis) if "Not all tasks have all seeds" in note]
    assert f"those that all have ({', '.join(map(str, shared))})" in note


def test_without_a_seed_that_all_tasks_have_their_errors_are_added(analysis_of):
    """As if the tasks shared all noise of seeds, which nobody can see."""
    runs = runs_with_seeds([(0, 1, 2), (1, 2, 3), (3, 4, 5)])
    analysis = analysis_of(runs, 200)
    mean = analysis.gains["mine"].mean
    alone = [
        analysis_of([run for run in runs if run.task == column.task], 200).gains["mine"].mean
        for column in analysis.selection.columns
    ]
    assert mean.value == pytest.approx(np.mean([gain.value for gain in alone]))
    assert mean.error == pytest.approx(np.mean([gain.error for gain in alone]))
    assert mean.seeds == 3 and mean.is_judged
    assert any("none in common, so the mean gain is over all" in note for note in caveats(analysis))
