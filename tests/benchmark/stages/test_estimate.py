"""Hours from the speed of one device."""

from __future__ import annotations

import pytest

from benchmark.stages.estimate import Work, duration


def test_work():
    work = Work(images=7200 * 10, speed=10)
    assert work.device_hours == 2 and work.seconds(8) == 900
    assert Work(10, None).device_hours is None and Work(10, None).seconds(8) is None


@pytest.mark.parametrize(
    ("seconds", "told"),
    [(3, "3 s"), (89, "89 s"), (120, "2 min"), (5400, "1.5 h"), (360_000, "100.0 h")],
)
def test_duration(seconds, told):
    assert duration(seconds) == told
