"""Frozen and tuned numbers: apart in columns, means and places, side by side in one section."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from reports.summary import summarise
from reports.tiers import agreement, gain_frame, order_of, tier_figures, tier_lines, tier_pairs
from tests.reports.synthetic import stored_run

pytestmark = pytest.mark.integration

FROZEN = {"clip": 50.0, "mine": 60.0, "best": 70.0}
TUNED = {"clip": 80.0, "mine": 75.0, "best": 90.0}


def runs_of(tasks, names=tuple(FROZEN), seeds=3, frozen=FROZEN):
    tuned = {"seconds": 1.0, "trained_parameters": 2e6, "train_processor_seconds": 30.0}
    tiers = [("", frozen, {"seconds": 1.0}), (":tune=lora:16", TUNED, tuned)]
    return [
        stored_run(name, task, seed, values[name] + 0.01 * seed, protocol=task, costs=costs)
        for base in tasks
        for task, values, costs in ((base + tier, *about) for tier, *about in tiers)
        for name in (names if values else ())
        for seed in range(seeds)
    ]


def test_the_order_is_compared_by_rank_correlations_and_pairs(analysis_of):
    analysis = analysis_of(runs_of(["voc/linear", "ade20k/linear:0.1"]), images=40)
    ((tier, pairs),) = tier_pairs(analysis, {}).items()
    assert tier == "lora:16" and len(pairs) == 2
    assert pairs[1].tuned.task == "ade20k/linear:0.1:tune=lora:16"
    order = order_of(analysis, pairs)
    values = [*FROZEN.values()], [*TUNED.values()]
    for measured, expected in (
        (order.kendall, stats.kendalltau(*values).statistic),
        (order.spearman, stats.spearmanr(*values).statistic),
    ):
        value, low, high = measured
        assert value == pytest.approx(expected) and low <= value <= high
    assert (order.held, order.pairs) == (4, 6)
    tasks = ("voc/linear", "ade20k/linear:0.1")
    assert set(order.swapped) == {("mine", "clip", task) for task in tasks}
    first, *_, gains = tier_lines(analysis)
    assert first.startswith(
        "tune=lora:16: On these tasks the frozen order holds for 4 of 6 pairs; clip gains most."
    )
    # 60 % for two million weights in half a minute
    assert "clip +60.0 % (+29.99 for each million of trained weights, +2.000 for each" in gains
    figures = tier_figures(analysis)
    assert [figure.title for figure in figures] == list(tasks)
    assert "mine, lora:16: 75.01" in figures[0].alt


def test_agreement_is_scipys_with_ties():
    frozen, tuned = np.random.default_rng(0).integers(0, 5, (2, 50, 6)).astype(float)
    kendall, spearman = agreement([(frozen, tuned)])
    for row in range(50):
        pair = frozen[row], tuned[row]
        assert kendall[row] == pytest.approx(stats.kendalltau(*pair).statistic)
        assert spearman[row] == pytest.approx(stats.spearmanr(*pair).statistic)


def test_noise_of_images_and_seeds_widens_the_interval(analysis_of):
    close = {"clip": 50.0, "mine": 50.05, "best": 50.1}
    analysis = analysis_of(runs_of(["voc/linear"], frozen=close), images=40)
    ((_, pairs),) = tier_pairs(analysis, {}).items()
    _, low, high = order_of(analysis, pairs).kendall
    assert high - low > 0.5
    assert not order_of(analysis, pairs).swapped


def test_with_two_backbones_there_are_only_gains(analysis_of):
    analysis = analysis_of(runs_of(["voc/linear"], ["clip", "mine"]), images=40)
    (line,) = tier_lines(analysis)
    assert line.startswith("tune=lora:16: gain over frozen, mean over 1 task: clip +60.0 %")
    assert gain_frame(analysis)["gain"].tolist() == pytest.approx([30.0, 15.0])


def test_tiers_share_no_column_and_no_mean(analysis_of):
    analysis = analysis_of(runs_of(["voc/linear"]), images=40)
    columns = {column.task: column for column in analysis.selection.columns}
    assert set(columns) == {"voc/linear", "voc/linear:tune=lora:16"}
    gain = analysis.gains["mine"]
    assert gain.columns == [columns["voc/linear"]]
    assert gain.mean.value == pytest.approx(20, abs=0.1)
    excluded = analysis.excluded["mine", columns["voc/linear:tune=lora:16"]]
    assert excluded == "its backbone is tuned"
    assert analysis.tasks("mine") == {"voc/linear": "win"}
    assert analysis.tasks("mine", tuned=True) == {"voc/linear:tune=lora:16": "loss"}
    words = summarise(analysis)
    assert "best is better than clip on 1 of 1 task," in words.headline
    assert all("tuned: better on" in line for line in (words.headline, *words.lines))
    only_tuned = analysis_of(runs_of(["voc/linear"], frozen={}), images=40)
    assert only_tuned.tasks("best") == {"voc/linear:tune=lora:16": "win"}
    assert not only_tuned.tasks("best", tuned=True)
    assert tier_lines(analysis_of(runs_of(["voc/linear"])[:9])) == []


def test_what_else_differs_is_said_and_the_closest_protocol_is_compared(analysis_of):
    runs = runs_of(["voc/linear"])
    for name, value in FROZEN.items():  # an older frozen protocol
        runs.append(stored_run(name, "voc/linear", 0, value - 9, protocol="old", started=-1))
    analysis = analysis_of(runs, images=40)
    same = {"size": 512, "lr": 0.1, "flip": 0.0, "tune_rates": [0.1]}
    settings = {"old": {"size": 64}, "voc/linear": same, "voc/linear:tune=lora:16": {"size": 512}}
    conditions = {
        column: {"task": column.task, "settings": settings[column.protocol]}
        for column in analysis.selection.columns
    }
    ((_, (pair,)),) = tier_pairs(analysis, conditions).items()
    assert pair.frozen.protocol == "old" and dict(pair.differences) == {"size": (64, 512)}
    settings["old"] |= {"lr": 0.1, "flip": 0.5}
    del same["flip"]
    ((_, (pair,)),) = tier_pairs(analysis, conditions).items()
    assert pair.frozen.protocol == "voc/linear" and pair.differences
    *_, last = tier_lines(analysis, conditions)
    assert last.endswith("also differs in other conditions: lr 0.1 when frozen and – when tuned.")


def test_the_frozen_protocol_that_most_backbones_share_is_compared(analysis_of):
    runs = runs_of(["voc/linear"])
    runs.append(stored_run("clip", "voc/linear", 0, 20.0, protocol="new"))
    analysis = analysis_of(runs, images=40)
    settings = {"new": {"lr": 0.1}, "voc/linear": {"lr": 1}, "voc/linear:tune=lora:16": {"lr": 0.1}}
    conditions = {
        column: {"head": {"task": column.task, "settings": settings[column.protocol]}}
        for column in analysis.selection.columns
    }
    ((_, (pair,)),) = tier_pairs(analysis, conditions).items()
    assert len(pair.backbones) == 3 and dict(pair.differences) == {"head.settings.lr": (1, 0.1)}


def test_without_a_known_gain_nobody_gains_most(analysis_of):
    runs = runs_of(["voc/linear"], seeds=1, frozen=dict.fromkeys(FROZEN, 0.0))
    analysis = analysis_of(runs, images=40)
    assert "holds for 0 of 3 pairs. Kendall" in tier_lines(analysis)[0]
