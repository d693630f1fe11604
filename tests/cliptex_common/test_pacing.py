"""What is saved regularly takes at most a fixed share of the time."""

from __future__ import annotations

import pytest

from cliptex_common import progress
from cliptex_common.progress import Pace


class Clock:
    """A time that passes only when it is told to."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(progress, "time", clock)
    return clock


@pytest.mark.parametrize(
    ("interval", "cost", "pause"),
    [(60.0, 0.5, 60), (60.0, 10, 500), (0.0, 10, 0)],
    ids=["cheap", "costly: 2 % of the time", "always due"],
)
def test_when_something_is_due(clock, interval, cost, pause):
    pace = Pace(interval)
    clock.now += interval
    for _ in range(2):
        assert pace.is_due
        with pace.timed():
            clock.now += cost
        clock.now += pause - 1
        assert pace.is_due == (not interval)
        clock.now += 1
    assert pace.is_due
