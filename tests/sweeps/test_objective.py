"""Gains count the right way round, and a hole is never averaged away."""

from __future__ import annotations

import math

import pytest

from cliptex_common.errors import UserError
from sweeps.objective import make_objectives, task_gains
from tests.sweeps.cheap import BASELINE, TASKS, measure

BASE = dict.fromkeys(("lambda_clip", "lambda_seg", "lambda_depth", "lambda_normal"), 1.0)


def test_mean_gain_is_the_interquartile_mean_over_main_metrics_of_all_tasks():
    (gain,) = make_objectives(["gain"], TASKS)
    metrics = measure({**BASE, "lambda_seg": 0.1})
    by_hand = sorted([100 * (30 - 28) / 28, 100 * (0.32 - 0.30) / 0.32, 0.0])
    assert gain.value(metrics, BASELINE) == pytest.approx(
        (by_hand[0] + 4 * by_hand[1] + by_hand[2]) / 6
    )
    assert gain.value(BASELINE, BASELINE) == 0.0
    assert sorted(task_gains(metrics, BASELINE, TASKS).values()) == pytest.approx(by_hand)


def test_the_default_is_dense_where_there_is_any():
    assert [objective.name for objective in make_objectives([], TASKS)] == ["dense"]
    (only,) = make_objectives([], {"class/zero-shot": TASKS["class/zero-shot"]})
    assert only.name == "gain"


def test_several_objectives_and_any_metric():
    names = ["dense", "zero-shot", "seg/linear/aAcc", "depth/linear/abs_rel"]
    dense, zero_shot, accuracy, error = make_objectives(names, TASKS)
    assert list(dense.tasks) == ["seg/linear", "depth/linear"]
    assert list(zero_shot.tasks) == ["class/zero-shot"]
    assert (accuracy.sign, error.sign) == (1, -1)
    assert error.value(measure(BASE), BASELINE) == pytest.approx(0.30)


@pytest.mark.parametrize("metric", [{}, {"abs_rel": math.nan}, {"abs_rel": math.inf}])
def test_a_hole_is_an_error(metric):
    (gain,) = make_objectives(["gain"], TASKS)
    metrics = {**measure(BASE), "depth/linear": metric}
    with pytest.raises(ValueError, match="no value for depth/linear/abs_rel"):
        gain.value(metrics, BASELINE)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("best", "known: dense, gain"),
        ("seg/linear/PQ", "did you mean seg/linear/mIoU"),
        ("zero-shot", "known: dense"),
    ],
)
def test_unknown_objectives(name, message):
    with pytest.raises(UserError, match=f"--objective {name}: {message}"):
        make_objectives([name], {"seg/linear": TASKS["seg/linear"]})
