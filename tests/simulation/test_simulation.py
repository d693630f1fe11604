"""The simulated reports of ``docs/simulations.md``, a small part of them."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np
import pytest

from tests.simulation import real
from tests.simulation.__main__ import BETTER, TASK_SEEDS, TRAINED, UNEVEN, mixed, seeds
from tests.simulation.world import World, judge, run, run_power, simulate

WORLDS: dict[str, World | Callable[[np.random.Generator], World]] = {
    "1 seed, further metrics": World(backbones=3, further=4, **seeds(1)),
    "2 seeds, 3.6 points": World(**seeds(2, 3.6)),
    "2 seeds, much noisier than images": World(binary=0.0, **seeds(2, 20.0)),
    "6 of 7 tasks differ, further metrics": World(effect=9.0, differ=0.86, further=4),
    "seeds that are not paired": World(seed=1.0, base_seeds=(1, 2, 3, 4)),
    **{name: World(task_seeds=of_tasks, **UNEVEN) for name, of_tasks in TASK_SEEDS.items()},
    "tasks on the same images": World(of_image=0.5),
    "3 seeds, 3.6 points, heavy tails": World(seed=3.6, heavy=True),
    "5 seeds, backbones unlike": World(6, noisy_backbones=5.0, **seeds(5, 1.5)),
    "3 seeds, a task unlike": World(noisy_task=10.0),
    "mixed": partial(mixed, count=3),
    "a bound and a difference": World(images=500, level=98.0, effect=0.8),
    "a small baseline": World(images=1000, level=2.7, effect=0.5, seed=0.3),
}


@pytest.mark.parametrize("name", WORLDS)
def test_false_reports_and_coverage(name):
    rates = run(WORLDS[name], 40, np.random.default_rng(0))
    false, _ = rates.pop("false")
    assert false <= 0.05 + 2.6 * np.sqrt(0.05 * 0.95 / 40)
    for kind in ("numbers", "differences", "gains", "mean gains"):
        covered, error = rates[kind]
        error = max(error, np.sqrt(0.05 * 0.95 / 40) if kind == "mean gains" else 0.005)
        assert 0.93 - 3 * error <= covered <= 0.985 + 3 * error, kind


def test_seeds_alone_decide_nothing():
    rates = run(World(seed=0.2, scored=False, further=1), 20, np.random.default_rng(0))
    assert rates["false"][0] == 0


def test_what_differs_by_the_margin_is_not_called_equivalent():
    world, rng = World(images=500, effect=-3.0), np.random.default_rng(0)
    for _ in range(20):
        judged = judge(simulate(world, rng))
        gaps = judged.differences.values()
        assert not any(gap.within(3.0, judged.level) for gap in gaps)
        assert any(gap.within(9.0, judged.level) == "equivalent" for gap in gaps)


def test_percentages_of_a_small_baseline_are_shown_without_bias():
    world, rng = World(images=600, level=3.0, effect=3.0, seed=0.3), np.random.default_rng(0)
    judged = [judge(simulate(world, rng)) for _ in range(20)]
    gains = [gain.value for each in judged for gain in each.task_gains.values()]
    assert len(gains) > 0.9 * 20 * world.tasks and 92 < np.mean(gains) < 115


@pytest.mark.parametrize(
    ("world", "seeds_planned"),
    [(World(**seeds(1)), 0), (World(seed=3.6), 0), (World(seed=1.5), 5)],
)
def test_what_is_detectable_is_decided_with_80_percent(world, seeds_planned):
    share, error = run_power(world, 25, np.random.default_rng(0), seeds_planned)["power"]
    assert 0.75 - 2.6 * error <= share <= 0.85 + 2.6 * error


def test_a_better_backbone_is_found():
    rates = run(World(**BETTER), 20, np.random.default_rng(0))
    assert rates["decided"][0] >= 0.35 and rates["mean decided"][0] >= 0.9
    two = run(World(**BETTER, **seeds(2)), 20, np.random.default_rng(0))
    assert two["decided"][0] >= 0.1
    noisy = run(World(**{**BETTER, "effect": 9.0}, **TRAINED), 20, np.random.default_rng(0))
    assert noisy["decided"][0] >= 0.25


@pytest.mark.slow
@pytest.mark.skipif(not real.RUN.is_file(), reason="no stored run (set CLIPTEX_TEST_DATA)")
def test_real_backbones():
    assert real.run_null(2, 20, np.random.default_rng(0))["false"][0] <= 0.1
    assert real.run_differences([[*real.stored()][: real.NINE]], 3)["decided"][0] >= 0.55
