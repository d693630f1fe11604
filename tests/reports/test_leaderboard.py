"""Places of many backbones, and the page that shows them."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest

from reports.leaderboard import (
    RESAMPLES,
    Leaderboard,
    SharedColumn,
    rank_backbones,
    render_leaderboard,
)
from reports.records import Cell, Metric, ParentRun
from tests.simulation.world import World, run_places

IMAGES = 400


def column(qualities: dict[str, float], *, task="voc/linear", direction=1, images=IMAGES, seed=0):
    """A column of proportions; three seeds."""
    rng = np.random.default_rng(seed)
    difficulty = rng.uniform(-0.2, 0.2, images)
    weights = rng.multinomial(images, np.full(images, 1 / images), RESAMPLES)
    cell = Cell(
        backbone="",
        seed=0,
        task=task,
        probe="linear",
        dataset="voc",
        declared={"mIoU": Metric(direction)},
    )
    result = SharedColumn(cell, {"task": task}, images)
    for name, quality in qualities.items():
        result.values[name], result.resamples[name], result.sources[name] = {}, {}, "file"
        for seed in range(3):
            each = np.clip(quality + difficulty + rng.normal(0, 0.05, images), 0, 1) * 100
            result.values[name][seed] = float(each.mean())
            result.resamples[name][seed] = weights @ each / images
    return result


def rank_intervals(ranks) -> dict[str, tuple[int, int]]:
    return {name: (rank.first, rank.last) for name, rank in ranks.items()}


def test_backbones_that_cannot_be_told_apart_share_a_place():
    qualities = {"a": 0.7, "b": 0.7, "c": 0.5, "d": 0.3}
    assert rank_intervals(rank_backbones([column(qualities)])) == {
        "a": (1, 2),
        "b": (1, 2),
        "c": (3, 3),
        "d": (4, 4),
    }
    worse = rank_backbones([column(qualities, direction=-1)])
    assert rank_intervals(worse) == {"a": (3, 4), "b": (3, 4), "c": (2, 2), "d": (1, 1)}
    (*values,) = column(qualities).values["a"].values()
    assert worse["a"].score.value == pytest.approx(np.mean(values))


def test_several_tasks_rank_those_that_have_all():
    columns = [
        column({"a": 0.7, "b": 0.5, "c": 0.6}),
        column({"a": 0.2, "b": 0.4}, task="nyu/linear", direction=-1, seed=1),
    ]
    ranks = rank_backbones(columns)
    assert rank_intervals(ranks) == {"a": (1, 1), "b": (2, 2)}
    assert ranks["a"].score.value == pytest.approx(-ranks["b"].score.value)


@pytest.mark.parametrize("world", [World(10, 4, of_seed=0.33), World(10, 4, noisy_backbones=5.0)])
def test_places_of_equal_backbones_hold_together(world):
    """Seeds that tasks share, and backbones that are noisier than others."""
    share, _ = run_places(world, 20, np.random.default_rng(0))["places"]
    assert share >= 0.85


def test_the_page_has_every_number_and_its_protocol():
    results = Leaderboard({("voc", "x"): column({"a": 0.7, "b": 0.5})})
    results.backbones = {name: {"parameters": 1e6, "licence": "mit"} for name in "ab"}
    page = render_leaderboard(results, "Title <b>", "about")
    assert "Title &lt;b&gt;" in page
    loads = r"""(src|href)=["']?http|url\(|@import|fetch\("""
    assert not re.search(loads, page), "needs no network"
    content = json.loads(re.search(r'id="content">(.*?)</script>', page, re.S)[1])
    assert content["columns"][0]["cells"]["a"]["value"] == pytest.approx(70, abs=2)
    assert not re.search(r"± \d+\.\D", page)
    assert content["protocols"] == [{"task": "voc/linear"}]
    assert [group["label"] for group in content["groups"]] == [
        "all tasks",
        "probe: linear",
        "data: voc",
        "task: voc/linear",
    ]


def test_protocols_of_a_task_count_once():
    """Only the worst has both."""
    columns = {
        "old": column({"worst": 0.2}),
        "new": column({"worst": 0.1, "a": 0.6, "b": 0.5}, seed=1),
        "nyu": column({"worst": 0.1, "a": 0.6, "b": 0.5}, task="nyu/linear"),
        "alone": column({"worst": 0.1}, task="ade20k/linear"),
    }
    results = Leaderboard(dict(list(columns.items())[:3]))
    results.costs = {
        name: {"parameters": 1e6, "device": "", "image_size": ""} for name in ("worst", "a", "b")
    }
    page = render_leaderboard(results, "", "")
    content = json.loads(re.search(r'id="content">(.*?)</script>', page, re.S)[1])
    titles = [each["title"] for each in content["columns"]]
    assert titles == ["voc/linear (A)", "voc/linear (B)", "nyu/linear"]
    group = content["groups"][0]
    assert (group["columns"], group["ranked"]) == ([0, 1, 2], [1, 2])
    assert {name: each["place"] for name, each in group["places"].items()} == {
        "a": "1",
        "b": "2",
        "worst": "3",
    }
    figures = json.loads(re.search(r'id="figure-data">(.*?)</script>', page, re.S)[1])
    assert len({each["marker"]["color"] for each in figures["cost"]["data"]}) == 3
    page = render_leaderboard(Leaderboard(columns), "", "")
    content = json.loads(re.search(r'id="content">(.*?)</script>', page, re.S)[1])
    assert content["groups"][0]["places"] == {}, "nobody is first of one"


def test_columns_have_the_suites_order():
    tasks = ["nyu/linear", "voc/linear", "ade20k/linear"]
    results = Leaderboard({(task, ""): column({"a": 0.7}, task=task) for task in sorted(tasks)})
    names = tuple(f"{task}/mIoU" for task in tasks)
    results.parents = [ParentRun(backbone="a", seed=0, run_key="", main_metrics=names)]
    page = render_leaderboard(results, "", "")
    content = json.loads(re.search(r'id="content">(.*?)</script>', page, re.S)[1])
    assert [each["task"] for each in content["columns"]] == tasks
