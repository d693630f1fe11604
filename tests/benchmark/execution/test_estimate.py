"""The time left of a run, on a machine of another speed than the table's."""

from __future__ import annotations

import pytest

from benchmark.execution.estimate import Estimate, load_seconds, save_seconds, unit_type

TABLE = {"render": 5.0, "train clip": 60.0, "mini-seg/linear": 20.0, "mini-det/mask-rcnn": 40.0}
SLOWER = 1.7


def test_units_of_equal_cost_have_one_type():
    assert unit_type("probe", "clip · seed 1 · voc/linear") == "voc/linear"
    assert unit_type("train", "train cliptex · seed 0") == "train cliptex"
    assert unit_type("expert", "expert unet") == "expert unet"
    assert unit_type("render", "render 3/8") == "render"


def test_the_time_left_is_right_from_a_third_of_the_run_on(monkeypatch):
    """Two workers, which are never idle, on a slower machine."""
    clock = 0.0
    monkeypatch.setattr("benchmark.execution.estimate.time.monotonic", lambda: clock)
    estimate = Estimate()
    estimate.table = TABLE
    units = ["render"] * 8 + ["train clip"] + ["mini-seg/linear", "mini-det/mask-rcnn"] * 4
    estimate.expected.update(units[8:])
    estimate.submitted["render"] = 8
    lengths = [TABLE[type_] * SLOWER for type_ in units]
    ends = [sum(lengths[: i + 1]) / 2 for i in range(len(units))]
    for type_, seconds, clock in zip(units, lengths, ends, strict=True):
        estimate.add_done(type_, seconds)
        left = estimate.seconds_left([])
        if clock > ends[-1] / 3:
            assert left == pytest.approx(ends[-1] - clock)
    assert left == 0


def test_nothing_is_said_of_units_that_never_ran():
    estimate = Estimate()
    estimate.submitted["train clip"] = 2
    assert estimate.seconds_left([("train clip", 3.0)]) is None


def test_a_run_leaves_its_seconds_to_the_next(tmp_path, monkeypatch):
    monkeypatch.setenv("CLIPTEX_HOME", str(tmp_path))
    shipped = load_seconds("mini")
    assert {"train clip", "train cliptex", "expert unet", "label"} <= set(shipped)
    estimate = Estimate()
    estimate.add_done("train clip", 30.0)
    estimate.add_done("train clip", 50.0)
    save_seconds("mini", estimate)
    assert load_seconds("mini") == {**shipped, "train clip": 40.0}
    assert load_seconds("smoke") == {}
