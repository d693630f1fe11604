"""The headline says what the intervals say."""

from __future__ import annotations

import re

import numpy as np
import pytest

from reports.analysis import analyse
from reports.mlflow.query import Store
from reports.parts.caveats import caveats
from reports.parts.verdict import power_lines, verdict
from reports.selection import select
from tests.reports.synthetic import stored_run


def test_the_verdict_is_what_the_intervals_say(report):
    assert report.baseline == "clip-ft"
    assert report.verdict.tone == "better"
    assert (
        "it is better than clip-ft on 3 of 4 tasks and loses none; mean gain +27."
        in report.verdict.headline
    )
    analysis = report.analysis
    told = {c.title: analysis.verdict("cliptex", c) for c in analysis.selection.columns}
    assert told == {
        "voc/linear (A)": "win",
        "voc/linear (B)": "",
        "nyu-depth/linear": "win",
        "imagenet/linear": "tie",
        "flickr30k/retrieval": "win",
    }
    gain = analysis.gains["cliptex"]
    assert 0 < gain.typical.low < gain.typical.value < gain.mean.value and len(gain.columns) == 4
    assert gain.improvement == pytest.approx(3.5 / 4, abs=0.05), "imagenet is even"
    for key, gap in analysis.differences.items():  # mark, table and forest plot are one interval
        where = key[:2]
        if key[2] == key[1].main and where in analysis.task_gains:
            shown, base = analysis.task_gains[where], analysis.estimates["clip-ft", *key[1:]].value
            assert shown.verdict() == analysis.verdict(*where)
            if gap.seeds == analysis.estimates["clip-ft", *key[1:]].seeds:
                assert shown.reach == pytest.approx(100 * gap.reach / base)
    assert any(note.startswith("One seed") or "Seeds differ" in note for note in report.notes)


def test_the_headline_compares_gains_over_the_tasks_that_all_have(store):
    """A backbone that ran on its best task alone has a higher mean gain of its own; that is no
    lead."""
    values = {
        ("clip-ft", "voc/linear"): 50,
        ("clip-ft", "ade20k/linear"): 50,
        ("wide", "voc/linear"): 55,
        ("wide", "ade20k/linear"): 50,
        ("narrow", "voc/linear"): 54,
    }
    runs = [
        stored_run(10 * place + seed, *who, seed, value + 0.1 * ((place * seed) % 3))
        for place, (who, value) in enumerate(values.items())
        for seed in range(3)
    ]
    analysis = analyse(Store(store.uri), select(runs, ["x"]))
    assert analysis.gains["narrow"].typical.value > analysis.gains["wide"].typical.value
    headline = verdict(analysis).headline
    assert headline.startswith(
        "Of 2 backbones, wide has the highest mean gain on 1 task that all have: it is better than"
        " clip-ft on 1 of 2 tasks"
    )
    assert "one seed" not in headline
    alone = verdict(
        analyse(Store(store.uri), select([run for run in runs if run.tags["seed"] == "0"], ["x"]))
    )
    assert alone.tone == "open", "one seed without scores of images decides nothing"


def test_many_differences_are_not_decided_one_by_one_and_the_tone_follows_the_mean_gain(store):
    """One task of eight would be won at 95 %; together with the others it is not."""
    rng = np.random.default_rng(0)
    runs = []
    for task in range(8):
        for place, name in enumerate(("clip", "mine")):
            for seed in range(3):
                value = 50 + (0.3 * rng.normal() if task else place * (0.8 + 0.2 * seed))
                runs.append(
                    stored_run(
                        100 * task + 10 * place + seed, name, f"set-{task}/linear", seed, value
                    )
                )
    analysis = analyse(Store(store.uri), select(runs, ["x"]))
    first = analysis.selection.columns[0]
    gap = analysis.differences["mine", first, "mIoU"]
    assert gap.at(0.05).verdict() == "win" and gap.verdict() == "tie"
    told = verdict(analysis)
    assert told.tone == "open" and "cannot be told from clip" in told.headline
    assert any(
        "8 differences and 1 mean gain are judged together" in note for note in caveats(analysis)
    )
    (line,) = [
        line
        for line in power_lines(analysis)
        if line.startswith("set-0/linear: unknown noise of images and 3 seeds tell")
    ]
    assert re.search(
        r"undecided, and decided if differences stay as they are: mine with \d+ seeds", line
    )
