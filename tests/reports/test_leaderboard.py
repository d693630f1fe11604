"""Places of many backbones, and the page that shows them."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import pytest

from reports.comparison import Analysis, Measurements, judge_differences
from reports.leaderboard import (
    Leaderboard,
    Ranking,
    main_samples,
    mean_scores,
    rank_backbones,
    render_leaderboard,
)
from reports.provenance import collect_provenance
from reports.records import Metric, ParentRun
from reports.selection import select
from reports.statistics import RESAMPLES, MetricSample
from reports.store import Artifacts
from tests.reports.synthetic import stored_run
from tests.simulation.world import World, run_places

IMAGES = 400
SEEDS = (0, 1, 2)


@dataclass(frozen=True)
class Column:
    """The samples of proportions of a task under a protocol, by backbone."""

    samples: dict[str, MetricSample]
    task: str
    protocol: str
    direction: int


def column(qualities: dict[str, float], task="voc/linear", *, protocol="p", direction=1, seed=0):
    rng = np.random.default_rng(seed)
    difficulty = rng.uniform(-0.2, 0.2, IMAGES)
    weights = rng.multinomial(IMAGES, np.full(IMAGES, 1 / IMAGES), RESAMPLES)
    samples = {}
    for name, quality in qualities.items():
        noise = rng.normal(0, 0.05, (len(SEEDS), IMAGES))
        each = np.clip(quality + difficulty + noise, 0, 1) * 100
        resamples = each @ weights.T / IMAGES
        samples[name] = MetricSample(SEEDS, each.mean(axis=1), resamples, IMAGES)
    return Column(samples, task, protocol, direction)


def leaderboard(*columns: Column, order: Sequence[str] = (), **costs: float) -> Leaderboard:
    """A leaderboard of columns; ``costs``: backbone → its parameters."""
    cells = [
        stored_run(
            name,
            each.task,
            seed,
            float(sample.values[seed]),
            protocol=each.protocol,
            declared={"mIoU": Metric(each.direction)},
            source="one",
        )
        for each in columns
        for name, sample in each.samples.items()
        for seed in SEEDS
    ]
    parents = [
        ParentRun(
            run_id=f"parent-{name}-{seed}",
            backbone=name,
            seed=seed,
            weights="w",
            run_key="",
            licence=f"licence {name}",
            main_metrics=[f"{task}/mIoU" for task in order],
            costs={"parameters": costs[name]} if name in costs else {},
        )
        for name in dict.fromkeys(cell.backbone for cell in cells)
        for seed in SEEDS
    ]
    selection = select([*parents, *cells], [])
    by_protocol = {(each.task, each.protocol): each for each in selection.columns}
    samples = {
        (name, by_protocol[each.task, each.protocol], "mIoU"): sample
        for each in columns
        for name, sample in each.samples.items()
    }
    measured = Measurements(samples, {}, dict.fromkeys(selection.columns, IMAGES), {}, {}, [], [])
    judged = judge_differences(selection, samples)
    provenance = collect_provenance(Artifacts(), selection)
    protocols = [(each, {"task": each.task}) for each in selection.columns]
    analysis = Analysis(**vars(measured), **vars(judged))
    return Leaderboard(analysis, replace(provenance, protocols=protocols))


def content_of(board: Leaderboard) -> dict:
    page = render_leaderboard(board, "", "")
    return json.loads(re.search(r'id="content">(.*?)</script>', page, re.S)[1])


def rank_intervals(ranks) -> dict[str, tuple[int, int]]:
    return {name: (rank.first, rank.last) for name, rank in ranks.items()}


def test_backbones_that_cannot_be_told_apart_share_a_place():
    samples = column({"a": 0.7, "b": 0.7, "c": 0.5, "d": 0.3}).samples
    assert rank_intervals(*rank_backbones(Ranking(samples))) == {
        "a": (1, 2),
        "b": (1, 2),
        "c": (3, 3),
        "d": (4, 4),
    }
    worse = rank_intervals(*rank_backbones(Ranking(samples, sign=-1)))
    assert worse == {"a": (3, 4), "b": (3, 4), "c": (2, 2), "d": (1, 1)}


def test_several_tasks_rank_those_that_have_all():
    board = leaderboard(
        column({"a": 0.7, "b": 0.5, "c": 0.6}),
        column({"a": 0.2, "b": 0.4}, "nyu/linear", direction=-1, seed=1),
    )
    scores = mean_scores(main_samples(board.analysis.samples))
    assert rank_intervals(*rank_backbones(Ranking(scores))) == {"a": (1, 1), "b": (2, 2)}
    assert scores["a"].values.mean() == pytest.approx(-scores["b"].values.mean())


def test_one_seed_is_the_place_of_weights():
    samples = column({"a": 0.7, "b": 0.5, "c": 0.3}).samples
    samples = {**samples, "b": samples["b"].with_seeds([0])}
    (ranks,) = rank_backbones(Ranking(samples))
    assert [rank.of_these_weights for rank in ranks.values()] == [False, True, False]


def test_all_rankings_of_a_page_hold_together():
    """The first keeps half of the error rate; the more others, the less is decided in them."""
    samples = {n: column({"a": 0.505 + n / 1000, "b": 0.5}, seed=n).samples for n in range(40)}

    def decided(*numbers: int) -> list[int]:
        ranks = rank_backbones(*(Ranking(samples[n]) for n in numbers))
        return [len(each["b"].better) + len(each["a"].better) for each in ranks]

    alone = [decided(number)[0] for number in samples]
    first = [decided(number, *(n for n in samples if n != number))[0] for number in samples]
    assert sum(alone) >= sum(first) > sum(decided(*samples)) > 0


@pytest.mark.parametrize("world", [World(10, 4, of_seed=0.33), World(10, 4, noisy_backbones=5.0)])
def test_places_of_equal_backbones_hold_together(world):
    """Seeds that tasks share, and backbones that are noisier than others."""
    share, _ = run_places(world, 20, np.random.default_rng(0))["places"]
    assert share >= 0.85


def test_the_page_has_every_number_and_its_protocol():
    board = leaderboard(column({"a": 0.7, "b": 0.5}))
    page = render_leaderboard(board, "Title <b>", "about")
    assert "Title &lt;b&gt;" in page
    loads = r"""(src|href)=["']?http|url\(|@import|fetch\("""
    assert not re.search(loads, page), "needs no network"
    content = content_of(board)
    number = content["columns"][0]["cells"]["a"]
    assert number["value"] == pytest.approx(70, abs=2)
    assert re.fullmatch(r"\[\d\d\.\d+, \d\d\.\d+\]", number["interval"])
    assert content["protocols"] == [{"task": "voc/linear"}]
    assert [group["label"] for group in content["groups"]] == [
        "all tasks",
        "probe: linear",
        "data: voc",
        "task: voc/linear",
    ]


def test_protocols_of_a_task_count_once():
    """Only the worst has both."""
    columns = [
        column({"worst": 0.2}, protocol="old"),
        column({"worst": 0.1, "a": 0.6, "b": 0.5}, protocol="new", seed=1),
        column({"worst": 0.1, "a": 0.6, "b": 0.5}, "nyu/linear"),
    ]
    board = leaderboard(*columns, **dict.fromkeys(("worst", "a", "b"), 1e6))
    content = content_of(board)
    titles = [each["title"] for each in content["columns"]]
    assert titles == ["voc/linear (A)", "voc/linear (B)", "nyu/linear"]
    group = content["groups"][0]
    assert (group["columns"], group["ranked"]) == ([0, 1, 2], [1, 2])
    assert {name: each["place"] for name, each in group["places"].items()} == {
        "a": "1",
        "b": "2",
        "worst": "3",
    }
    page = render_leaderboard(board, "", "")
    figures = json.loads(re.search(r'id="figure-data">(.*?)</script>', page, re.S)[1])
    assert len({each["marker"]["color"] for each in figures["cost"]["data"]}) == 3
    content = content_of(leaderboard(*columns, column({"worst": 0.1}, "ade20k/linear")))
    assert content["groups"][0]["places"] == {}, "nobody is first of one"


def test_columns_have_the_suites_order():
    tasks = ["nyu/linear", "voc/linear", "ade20k/linear"]
    board = leaderboard(*(column({"a": 0.7}, task) for task in sorted(tasks)), order=tasks)
    assert [each["task"] for each in content_of(board)["columns"]] == tasks
