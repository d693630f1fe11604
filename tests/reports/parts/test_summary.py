"""The headline says what the intervals say."""

from __future__ import annotations

import re

import numpy as np
import pytest

from reports.parts.caveats import caveats
from reports.parts.summary import power_lines, summarise
from tests.reports.synthetic import stored_run


def test_the_verdict_follows_the_intervals(report):
    analysis, base = report.analysis, "clip-ft"
    assert (report.baseline, report.summary.tone) == (base, "better")
    headline = report.summary.headline
    assert (
        "cliptex is better than clip-ft on 3 of 4 tasks and worse on none; mean gain +27."
        in headline
    )
    assert {c.title: analysis.outcome("cliptex", c) for c in analysis.selection.columns} == {
        "voc/linear (A)": "win",
        "voc/linear (B)": "",
        "nyu-depth/linear": "win",
        "imagenet/linear": "tie",
        "flickr30k/retrieval": "win",
    }
    gain = analysis.gains["cliptex"]
    assert 0 < gain.iqm.low < gain.iqm.value < gain.mean.value and len(gain.columns) == 4
    assert gain.improvement == pytest.approx(3.5 / 4, abs=0.05), "imagenet is even"
    for (name, column), gain in analysis.task_gains.items():  # marks and figures agree
        gap = analysis.differences[name, column, column.main]
        reference = analysis.estimates[base, column, column.main]
        assert gain.verdict() == analysis.outcome(name, column)
        if gap.seeds == reference.seeds:
            assert gain.reach == pytest.approx(100 * gap.reach / reference.value)
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
    assert analysis.gains["narrow"].iqm.value > analysis.gains["wide"].iqm.value
    headline = summarise(analysis).headline
    assert headline.startswith("wide is better than clip-ft on 1 of 2 tasks and worse on none")
    assert headline.endswith("the highest of 2 backbones on the 1 task that all have.")
    one_seed = analysis_of([run for run in runs if run.seed == 0])
    assert summarise(one_seed).tone == "open", "one seed without scores of images decides nothing"


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
    assert gap.at(0.05).verdict() == "win" and gap.verdict() == "tie"
    result = summarise(analysis)
    assert result.tone == "open" and "does not differ detectably from clip" in result.headline
    notes = caveats(analysis)
    assert any("8 differences and 1 mean gain are judged jointly" in note for note in notes)
    power = power_lines(analysis)[0]
    assert re.search(r"undecided, and decided if .*: mine with \d+ seeds", power)
