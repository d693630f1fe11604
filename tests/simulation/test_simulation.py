"""Simulated reports of ``docs/statistics.md``: a small part, and all of them as slow tests."""

from __future__ import annotations

import numpy as np
import pytest

from tests.simulation.__main__ import MARK, PAGE, WORLDS
from tests.simulation.world import World, run


@pytest.mark.parametrize(
    "world",
    [
        World(3, 5, images=60),
        World(3, 5, images=60, seeds=((0, 1, 2, 3, 4), (0, 1, 2)), single=1, interaction=20.0),
    ],
    ids=["null", "unequal seeds, one task with one, much interaction"],
)
def test_equal_backbones_differ_in_few_reports(world):
    rates = run(world, 30, np.random.default_rng(0))
    assert rates.false <= 0.1, "at 5 %, more than three of thirty are false once in sixteen"
    assert min(rates.numbers, rates.differences, rates.gains) >= 0.88
    assert max(rates.numbers, rates.differences) <= 0.99


def test_a_better_backbone_is_found():
    rates = run(World(3, 5, effect=8.0), 15, np.random.default_rng(0))
    assert rates.right >= 0.8 and rates.false <= 0.1


def test_the_page_has_a_row_for_each_world():
    table = PAGE.read_text(encoding="utf-8").partition(MARK)[2].splitlines()
    names = [line.split("|")[1].strip() for line in table if line.startswith("| ")]
    assert names[1:] == list(WORLDS)


@pytest.mark.slow
@pytest.mark.parametrize("name", WORLDS)
def test_false_reports_and_coverage(name):
    world, share = WORLDS[name]
    rates = run(world, int(100 * share), np.random.default_rng(2))
    assert rates.false <= 0.05 + 2.6 * np.sqrt(0.05 * 0.95 / rates.reports)
    for covered in (rates.numbers, rates.differences, rates.gains):
        assert covered >= 0.92 - 3.3 * np.sqrt(0.05 * 0.95 / rates.reports)
