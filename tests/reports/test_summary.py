"""The headline says what the intervals say."""

from __future__ import annotations

import re

import numpy as np

from reports.summary import caveats, power_lines, summarise
from tests.reports import synthetic
from tests.reports.synthetic import stored_run, write_run


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
        stored_run(10 * index + seed, *key, seed, value + 0.1 * ((index * seed) % 3))
        for index, (key, value) in enumerate(values.items())
        for seed in range(3)
    ]
    analysis = analysis_of(runs)
    assert analysis.gains["narrow"].mean.value > analysis.gains["wide"].mean.value
    headline = summarise(analysis).headline
    assert headline.startswith("wide is better than clip-ft on 1 of 2 tasks, worse on none")
    assert headline.endswith("the highest of 2 backbones on the 1 task that all have.")
    one_seed = analysis_of([run for run in runs if run.seed == 0])
    assert summarise(one_seed).tone == "open", "one seed without scores of images decides nothing"


def test_one_seed_speaks_of_these_weights(tracker, report_of):
    """Decided tasks have hollow marks, and the mean gain has no verdict."""
    for name, quality in (("clip-ft", 0.5), ("cliptex", 0.8)):
        write_run(tracker, name, 0, {"voc/linear": quality, "nyu-depth/linear": quality})
    report = report_of(tracker)
    headline = report.summary.headline
    assert headline.startswith("For these weights, on these images: cliptex is better than clip-ft")
    assert report.summary.tone == "mixed", "no verdict on the mean gain"
    assert {n.change[0] for n in report.overview.numbers if n.backbone == "cliptex"} == {"△"}


def test_mark_bold_headline_card_and_detectable_agree(tracker, report_of, monkeypatch):
    """Two seeds: one task is decided, because its seeds are equal, the other has no verdict."""
    complete = synthetic.scores
    equal = lambda kind, quality, seed, images: complete(
        kind, quality, seed * (kind == "depth"), images
    )
    monkeypatch.setattr(synthetic, "scores", equal)
    tasks = ("imagenet/linear", "nyu-depth/linear")
    for name, quality in (("clip", 0.2), ("mine", 0.8)):
        for seed in range(2):
            write_run(tracker, name, seed, dict.fromkeys(tasks, quality))
    report = report_of(tracker)
    decided, unknown = [n for n in report.overview.numbers if n.backbone == "mine"]
    assert (decided.mark, decided.best, unknown.mark, unknown.best) == ("▲", True, "?", False)
    assert np.isfinite(decided.detectable) and np.isnan(unknown.detectable)
    assert list(report.analysis.tasks("mine").values()) == ["win", "unknown"], "the card"
    words = "mine is better than clip on 1 of 2 tasks, worse on none, without a verdict on 1"
    assert words in report.summary.headline
    first, second = report.power
    assert "not decided" not in first and "in 80 %" in first
    assert "2 seeds detect nothing; not decided, but decided if" in second


def test_many_differences_are_judged_jointly(analysis_of):
    """One task of eight would be won at 95 %; jointly with the others it is not."""
    rng = np.random.default_rng(0)
    runs = []
    for task in range(8):
        for index, name in enumerate(("clip", "mine")):
            for seed in range(3):
                value = 50 + (0.3 * rng.normal() if task else index * (0.8 + 0.2 * seed))
                number = 100 * task + 10 * index + seed
                runs.append(stored_run(number, name, f"set-{task}/linear", seed, value))
    analysis = analysis_of(runs)
    gap = analysis.differences["mine", analysis.selection.columns[0], "mIoU"]
    assert gap.low > 0 and gap.verdict() == "tie"
    result = summarise(analysis)
    assert result.tone == "open" and "does not differ detectably from clip" in result.headline
    notes = caveats(analysis)
    assert any("9 verdicts" in note for note in notes)
    power = power_lines(analysis)[0]
    assert re.search(r"not decided, but decided if .*: mine with \d+ seeds", power)
