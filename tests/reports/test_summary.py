"""The headline says what the intervals say."""

from __future__ import annotations

import re
from dataclasses import replace

import numpy as np
import pytest

from reports.records import ParentRun
from reports.summary import caveats, margin_lines, power_lines, summarise
from reports.tables import overview
from tests.reports.synthetic import stored_run, stored_runs, write_runs


def test_the_verdict_follows_the_intervals(report):
    analysis, base = report.analysis, "clip-ft"
    assert (report.baseline, report.summary.tone) == (base, "better")
    headline = report.summary.headline
    assert "cliptex is better than clip-ft on 3 of 4 tasks, worse on none, undecided" in headline
    assert "mean gain +35.3 % (95 % interval +" in headline
    assert {c.title: analysis.outcome("cliptex", c) for c in analysis.selection.columns} == {
        "voc/linear (A)": "win",
        "voc/linear (B)": "",
        "nyu-depth/linear": "win",
        "imagenet/linear": "tie",
        "flickr30k/retrieval": "win",
    }
    gain = analysis.gains["cliptex"]
    assert 0 < gain.mean.low < gain.mean.value and len(gain.columns) == 4
    for (name, column), gain in analysis.task_gains.items():  # marks and figures agree
        gap = analysis.differences[name, column, column.main]
        assert gain.seeds == gap.seeds and gain.verdict() == analysis.outcome(name, column)
    assert any("Seeds differ" in note for note in report.notes)


def test_the_headline_compares_gains_over_shared_tasks(analysis_of):
    """A backbone that ran on its best task alone has a higher mean gain of its own."""
    values = {
        ("clip-ft", "voc/linear"): 50,
        ("clip-ft", "ade20k/linear"): 50,
        ("wide", "voc/linear"): 55,
        ("wide", "ade20k/linear"): 50,
        ("narrow", "voc/linear"): 54,
    }
    runs = [
        stored_run(*key, seed, value + 0.1 * ((index * seed) % 3))
        for index, (key, value) in enumerate(values.items())
        for seed in range(3)
    ]
    analysis = analysis_of(runs, 200)
    assert analysis.gains["narrow"].mean.value > analysis.gains["wide"].mean.value
    headline = summarise(analysis).headline
    assert headline.startswith("wide is better than clip-ft on 1 of 2 tasks, worse on none")
    assert headline.endswith("the highest of 2 backbones on the 1 task that all have.")


@pytest.mark.parametrize("seeds", [1, 2])
def test_what_one_seed_decides_is_of_these_weights(seeds, tracker, report_of):
    """Of the other task there may be more. Decided tasks have hollow marks, and the mean gain has
    no verdict."""
    qualities = {"clip-ft": 0.5, "cliptex": 0.8}
    write_runs(tracker, qualities)
    write_runs(tracker, dict.fromkeys(qualities, 0.5), ["nyu-depth/linear"], range(seeds))
    report = report_of(tracker)
    assert {len(each) for each in report.analysis.selection.seeds.values()} == {seeds}
    assert report.summary.headline.startswith("For these weights: cliptex is better than clip-ft")
    assert report.summary.tone == "mixed", "no verdict on the mean gain"
    marks = {n.task: n.mark for n in report.overview.numbers if n.backbone == "cliptex"}
    assert marks["voc/linear"] == "△"


def test_mark_bold_headline_card_and_detectable_agree(tracker, report_of):
    """Two seeds: one task is decided, the other has too few images for a verdict."""
    qualities = {"clip": 0.2, "mine": 0.8}
    write_runs(tracker, qualities, ["imagenet/linear"], range(2))
    write_runs(tracker, qualities, ["nyu-depth/linear"], range(2), images=15)
    report = report_of(tracker)
    numbers = [n for n in report.overview.numbers if n.backbone == "mine"]
    decided, unknown = sorted(numbers, key=lambda number: number.task)
    assert (decided.mark, decided.best, unknown.mark, unknown.best) == ("▲", True, "?", False)
    assert np.isfinite(decided.detectable) and np.isnan(unknown.detectable)
    assert {*report.analysis.tasks("mine").values()} == {"win", "unknown"}, "the card"
    words = "mine is better than clip on 1 of 2 tasks, worse on none, without a verdict on 1"
    assert words in report.summary.headline
    first, second = sorted(report.power)
    assert "not decided" not in first and "in 80 %" in first
    assert "15 images and 2 seeds detect nothing; not decided" in second


def test_many_differences_are_judged_jointly(analysis_of):
    """One task of eight would be won at 95 %; jointly with the others it is not."""
    rng = np.random.default_rng(0)

    def value(row: int, index: int, seed: int) -> float:
        return 50 + (0.3 * rng.normal() if row else index * (0.5 + 0.2 * seed))

    tasks = [f"set-{number}/linear" for number in range(8)]
    analysis = analysis_of(stored_runs(value, tasks), 200)
    gap = analysis.differences["mine", analysis.selection.columns[0], "mIoU"]
    assert gap.low > 0 and gap.verdict() == "tie"
    result = summarise(analysis)
    assert result.tone == "open" and "does not differ detectably from clip" in result.headline
    notes = caveats(analysis)
    assert any("9 verdicts" in note for note in notes)
    power = power_lines(analysis)[0]
    assert re.search(r"not decided, but in 80 % .*: mine with \d+ seeds", power)


def test_noise_of_training_and_of_the_probe_apart(analysis_of):
    """Weights that stay show the probe's alone: a quarter of the variance of the others."""
    rng = np.random.default_rng(0)
    values = lambda _, index, seed: 50 + (1 + index) * rng.normal()
    runs = [
        run.model_copy(update={"weights": f"w{run.seed * (run.backbone == 'mine')}"})
        for run in stored_runs(values, [f"set-{task}/linear" for task in range(12)], seeds=range(5))
    ]
    trainings = [
        ParentRun(
            run_id=f"parent-mine-{seed}",
            backbone="mine",
            seed=seed,
            weights=f"w{seed}",
            run_key="",
            train_run=f"training-{seed}",
        )
        for seed in range(5)
    ]
    notes = caveats(analysis_of([*runs, *trainings], 200))
    assert any(note.startswith("Seeds of clip are of the probe alone") for note in notes)
    (text,) = (note for note in notes if note.startswith("Seeds of mine are of weights and probe"))
    share, low, high = map(int, re.findall(r"\d+", text))
    assert low < 25 < high and 10 < share < 60


def test_metrics_that_order_backbones_differently_are_named(analysis_of):
    def note(falling: float) -> list[str]:
        def metrics(_: int, index: int, seed: int) -> dict[str, float]:
            own = {"mIoU": 50.0 + 3 * index, "mAcc": 60.0 + falling * index}
            return {name: value + 0.1 * seed for name, value in own.items()}

        runs = stored_runs(metrics, names=[f"net-{index}" for index in range(6)])
        return [note for note in caveats(analysis_of(runs, 200)) if "order the" in note]

    (line,) = note(-3.0)
    assert "mIoU and mAcc order the 6 backbones differently (Spearman's ρ −1.00)" in line
    assert "net-1 is better than net-0 by the first, worse by the second" in line
    assert note(3.0) == note(-0.001) == [], "they agree, or nothing is decided"


def test_what_is_undecided_may_be_equivalent_within_a_margin(analysis_of):
    gaps = {"a": (-0.02, 0.0, 0.03), "b": (0.1, 0.4, 0.8), "c": (-1.0, 0.3, 1.2)}
    values = lambda row, index, seed: 50 + index * [*gaps.values()][row][seed]
    runs = stored_runs(values, [f"{task}/linear" for task in gaps])
    analysis = analysis_of(runs, 200)
    assert margin_lines(analysis) == []
    assert margin_lines(replace(analysis, margin="1")) == [
        "mine and clip: equivalent within 1 on a/linear; no worse than 1 below on b/linear."
    ]
    ours = replace(analysis, margin="2%")  # of 50
    assert margin_lines(ours)[0].startswith("mine and clip: equivalent within 2% on a/linear")
    assert [number.mark for number in overview(ours).numbers[3:]] == ["≈", "≳", "="]
