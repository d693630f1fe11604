"""The time left of a run, on a machine of another speed than the table's."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from benchmark.execution.estimate import REPORT, Estimate, load_seconds, save_seconds, unit_type

TABLE = {"train clip": 10.0, "voc/linear": 20.0}
SHORT, LONG = "train clip", "voc/linear"


@pytest.fixture
def after(monkeypatch) -> Callable[[float], Estimate]:
    """An estimate, so many seconds after the start of a run: one short and two long units are
    announced, beside a short one that is submitted."""
    clock = 0.0
    monkeypatch.setattr("benchmark.execution.estimate.time.monotonic", lambda: clock)
    estimate = Estimate()
    estimate.table = TABLE
    estimate.announce("train", ["train clip · seed 0", "train clip · seed 1"])
    estimate.announce("probe", ["clip · seed 0 · voc/linear", "clip · seed 1 · voc/linear"])
    estimate.add_submitted("train clip · seed 0", SHORT)

    def wait(seconds: float) -> Estimate:
        nonlocal clock
        clock = seconds
        return estimate

    return wait


def test_units_of_equal_cost_have_one_type():
    assert unit_type("probe", "clip · seed 1 · voc/linear") == "voc/linear"
    assert unit_type("train", "train cliptex · seed 0") == "train cliptex"
    assert unit_type("expert", "expert unet") == "expert unet"
    assert unit_type("render", "render 3/8") == "render"
    assert unit_type("manual", "manual labels") == "manual labels"


def test_a_unit_counts_once_whether_announced_or_not(after):
    estimate = after(0)
    assert estimate.units == {SHORT: 2, LONG: 2}, "one of them is submitted"
    estimate.add_submitted("load clip", "backbone")
    estimate.withdraw(["train clip · seed 0", "train clip · seed 1"])
    assert estimate.units == {SHORT: 1, LONG: 2, "backbone": 1}, "what is submitted stays"


@pytest.mark.parametrize(
    ("running", "expected"),
    [
        ([], 75.0),  # 10 s + 2 × 20 s of the table, half as long again, by one worker
        ([(LONG, 15.0)], 30.0),  # 15 s of them are done, and two workers share the rest
        ([(LONG, 60.0)], 30.0),  # of five workers one has the other long unit to do
    ],
)
def test_the_time_left_counts_workers_and_what_runs(after, running, expected):
    estimate = after(15)
    estimate.add_done(SHORT, 15.0)
    assert estimate.seconds_left(running) == pytest.approx(expected)


def test_the_report_comes_after_the_last_unit(after):
    estimate = after(15)
    estimate.table = {**TABLE, REPORT: 8.0}
    estimate.add_done(SHORT, 15.0)
    assert estimate.seconds_left([]) == pytest.approx(75 + 12), "half as long again"


def test_units_of_an_unknown_type_keep_workers_busy_and_say_nothing_of_the_speed(after):
    estimate = after(15)
    estimate.add_submitted("train other", "train other")
    estimate.add_submitted("train another", "train another")
    estimate.add_done("train other", 15.0)
    assert estimate.seconds_left([]) is None, "no unit of the table has ended"
    estimate.add_done(SHORT, 15.0)
    assert estimate.seconds_left([]) == pytest.approx(75 / 2)


def test_units_that_were_resumed_or_failed_say_nothing_of_the_speed(after):
    estimate = after(15)
    estimate.add_done(SHORT, 15.0)
    estimate.add_submitted("train clip · seed 1", SHORT)
    estimate.add_done(SHORT, 1.0, measures=False)
    after(16)
    assert estimate.units - estimate.finished == {LONG: 2}
    assert estimate.seconds_left([]) == pytest.approx(60)


def test_nothing_is_said_before_a_tenth_is_done(after):
    estimate = after(5)
    assert estimate.seconds_left([(SHORT, 5.0)]) is None, "the machine's speed is unknown"
    estimate.announce("probe", [f"clip · seed {seed} · voc/linear" for seed in range(2, 9)])
    estimate.add_done(SHORT, 5.0)  # of 100
    assert estimate.seconds_left([]) is None
    assert estimate.seconds_left([(LONG, 5.0)]) == pytest.approx(90 / 2)


def test_a_run_leaves_its_seconds_to_the_next(tmp_path, monkeypatch):
    monkeypatch.setenv("CLIPTEX_HOME", str(tmp_path))
    shipped = load_seconds("mini")
    assert {"train clip", "train cliptex", "expert unet", "label", "manual labels"} <= set(shipped)
    estimate = Estimate()
    estimate.add_done("train clip", 30.0)
    estimate.add_done("train clip", 50.0)
    estimate.add_done("train clip", 1.0, measures=False)
    estimate.add_done("train cliptex", 1.0, measures=False)
    save_seconds("mini", estimate.means())
    assert load_seconds("mini") == {**shipped, "train clip": 40.0}
    assert load_seconds("smoke") == {}
