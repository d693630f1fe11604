"""Scores against costs: the front, its menus, and what is measured where."""

from __future__ import annotations

import pandas as pd
import pytest

from reports.figures import Score, Style
from reports.relations import cost_figure, on_front, stage_seconds
from reports.statistics import Estimate
from tests.reports.synthetic import stored_run

STYLES = {name: Style("#000", "circle") for name in ("small", "large", "slow")}


def test_costs_count_shared_tasks_once(analysis_of):
    measured = {"clip": ["voc p", "voc q", "ade20k p"], "mine": ["voc p", "voc q"]}
    runs = [
        stored_run(name, f"{each.split()[0]}/linear", 0, 50.0, protocol=each.split()[1])
        for name, protocols in measured.items()
        for each in protocols
    ]
    seconds = {"probing": 1.0}  # of each run
    assert stage_seconds(analysis_of(runs)) == {"clip": seconds, "mine": seconds}


@pytest.mark.parametrize(
    ("sign", "front"), [(1, {"small", "large"}), (-1, {"large", "slow"})], ids=["less", "more"]
)
def test_the_front_has_those_that_no_better_one_undercuts(sign, front):
    costs = {"small": 1.0, "large": 2.0, "slow": 3.0, "unknown": float("nan")}
    better = {"small": ["large"], "slow": ["large"], "unknown": ["large"], "large": ["unknown"]}
    assert on_front(costs, better, sign) == front


def test_a_choice_of_score_and_cost_moves_points_and_front():
    costs = pd.DataFrame(
        {"parameters": [5e6, 90e6, 90e6], "latency_ms": [3.0, 2.0, None], "device": "cpu"},
        [*STYLES],
    ).assign(image_size="224 × 224")
    estimates = {name: Estimate(value) for name, value in zip(STYLES, (1.0, 3.0, 2.0), strict=True)}
    scores = [Score("mean gain (%)", estimates), Score("mIoU", {"small": Estimate(40.0)})]
    better = [{"slow": ["large"]}, {}]
    (figure,) = cost_figure(STYLES, scores, better, costs)
    assert figure.menus["score"] == ["mean gain (%)", "mIoU"]
    assert [data["x"] for data in figure.spec["data"]] == [[5.0], [90.0], [90.0]]
    assert [data["opacity"] == 1 for data in figure.spec["data"]] == [True, True, False]
    choices = figure.choices
    assert [data["y"] for data in choices["y"][1]["data"]] == [[40.0], [None], [None]]
    assert [data["x"] for data in choices["x"][1]["data"]] == [[3.0], [2.0], [None]]
    assert choices["opacity"][1][0] == [1.0, 1.0, 1.0], "nobody is better there"
    assert "fp32" in figure.caption and "cpu" in figure.caption and "224 × 224" in figure.caption
    costs["device"] = ["cpu", "gpu", "cpu"]
    assert "cannot be compared" in cost_figure(STYLES, scores, better, costs)[0].caption


def test_no_figure_without_costs_of_two():
    costs = pd.DataFrame({"parameters": [5e6, None, None]}, [*STYLES])
    assert cost_figure(STYLES, [Score("mIoU", {})], [{}], costs) == []
