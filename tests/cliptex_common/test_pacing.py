"""What is saved regularly takes at most a fixed share of the time."""

from __future__ import annotations

import pytest

from cliptex_common import pacing
from cliptex_common.pacing import Pace


class Clock:
    """A time that passes only when it is told to."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(pacing, "time", clock)
    return clock


def save(pace: Pace, clock: Clock, seconds: float) -> None:
    with pace.timed():
        clock.now += seconds


def test_cheap_things_are_due_at_their_interval(clock):
    pace = Pace(60.0)
    for _ in range(3):
        clock.now += 59
        assert not pace.is_due
        clock.now += 1
        assert pace.is_due
        save(pace, clock, 0.5)


def test_costly_things_are_due_less_often(clock):
    pace = Pace(60.0)
    clock.now += 60
    save(pace, clock, 10)  # 2 % of 500 seconds
    clock.now += 499
    assert not pace.is_due
    clock.now += 1
    assert pace.is_due


def test_without_an_interval_they_are_always_due(clock):
    pace = Pace(0.0)
    for _ in range(2):
        assert pace.is_due
        save(pace, clock, 10)
