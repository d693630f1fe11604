"""``python -m tests.simulation [REPORTS]``: write the table of ``docs/statistics.md``."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

from tests.simulation.world import World, run

PAGE = Path(__file__).parents[2] / "docs" / "statistics.md"
MARK = "<!-- table -->\n"
FIVE = ((0, 1, 2, 3, 4),)
TWO = ((0, 1),)
ONE = ((0,),)
UNLIKE = {"unlike": 100.0, "seed": 1.0}
WORLDS: dict[str, tuple[World, float]] = {  # and the share of the reports
    "null, 2 backbones, 7 tasks": (World(), 1),
    "null, 5 seeds": (World(seeds=FIVE), 1),
    "null, 2 seeds": (World(seeds=TWO), 1),
    "null, 1 seed (of these weights)": (World(seeds=ONE, seed=0.0, shared=0.0), 1),
    "null, seeds 0–4 against 0–2": (World(seeds=(*FIVE, (0, 1, 2))), 1),
    "null, seeds 0–2 against 3–5": (World(seeds=((0, 1, 2), (3, 4, 5))), 1),
    "null, two tasks with 1 seed": (World(single=2), 1),
    "null, seeds shared by all tasks": (World(shared=0.8, seed=0.2), 1),
    "null, seeds shared by all tasks, 2 seeds": (World(shared=0.8, seed=0.2, seeds=TWO), 1),
    "null, seed variances 1 to 100": (World(**UNLIKE), 1),
    "null, seed variances 1 to 100, 2 seeds": (World(**UNLIKE, seeds=TWO), 1),
    "null, seed variances 1 to 100, 5 seeds": (World(**UNLIKE, seeds=FIVE), 1),
    "null, seed variances 1 to 100, seeds shared by all tasks": (
        World(unlike=100.0, shared=1.0, seed=0.1),
        1,
    ),
    "null, one seed variance × 100": (World(noisy_task=100.0), 1),
    "null, one seed variance × 100, 2 seeds": (World(noisy_task=100.0, seeds=TWO), 1),
    "null, one seed variance × 100, 5 seeds": (World(noisy_task=100.0, seeds=FIVE), 1),
    "null, one seed variance × 100, 20 tasks": (World(2, 20, noisy_task=100.0), 1),
    "null, seeds alone vary": (World(seed=3.0, apart=0.5, interaction=0.5, binary=False), 1),
    "null, images alone vary": (World(seed=0.0, shared=0.0, interaction=0.0), 1),
    "null, interaction alone": (
        World(seed=0.0, shared=0.0, apart=0.0, interaction=20.0, binary=False),
        1,
    ),
    "null, 30 images": (World(images=30), 1),
    "null, 1 % of 400 images": (World(images=400, level=1.0), 1),
    "null, 99 % of 400 images": (World(images=400, level=99.0), 1),
    "null, 99 % of 200 images, 1 seed": (
        World(level=99.0, seeds=ONE, seed=0.0, shared=0.0),
        1,
    ),
    "better by 3 points, 500 images": (World(effect=3.0, images=500), 1),
    "better by 3 points, 500 images, 2 seeds": (World(effect=3.0, images=500, seeds=TWO), 1),
    "better by 3 points, 500 images, 5 seeds": (World(effect=3.0, images=500, seeds=FIVE), 1),
    "better by 3 points, seed variances 1 to 100": (World(effect=3.0, images=500, unlike=100.0), 1),
    "better by 2 points, 200 images": (World(effect=2.0), 1),
    "null, 2 backbones, 20 tasks": (World(tasks=20), 0.4),
    "null, 5 backbones on the same images": (World(5, 7, one_set=True), 0.3),
    "null, 10 backbones": (World(10), 0.2),
    "null, 10 backbones, seed variances 1 to 100": (World(10, **UNLIKE), 0.2),
    "null, 10 backbones, the baseline's seed variance × 100": (World(10, noisy_base=100.0), 0.2),
    "better by 3 points, 500 images, 10 backbones": (World(10, effect=3.0, images=500), 0.1),
    "null, 40 backbones": (World(40), 0.06),
}
HEADS = (
    "reports",
    "headline or verdict false (%)",
    "headline right (%)",
    "tasks decided (%)",
    "covers: numbers",
    "differences",
    "mean gain",
)


def table(reports: int) -> str:
    """A row for each world, in Markdown."""
    lines = [f"| what is simulated | {' | '.join(HEADS)} |", "|---" * (len(HEADS) + 1) + "|"]
    for name, (world, share) in WORLDS.items():
        rates = run(world, max(20, int(reports * share)), np.random.default_rng(1))
        right = [f"{100 * x:.0f}" if world.effect else "" for x in (rates.right, rates.decided)]
        covers = [f"{100 * x:.1f}" for x in (rates.numbers, rates.differences, rates.gains)]
        row = [name, f"{rates.reports}", f"{100 * rates.false:.1f}", *right, *covers]
        lines.append(f"| {' | '.join(row)} |")
        print(lines[-1], flush=True)
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    rows = table(int(sys.argv[1]) if len(sys.argv) > 1 else 250)
    before, mark, _ = PAGE.read_text(encoding="utf-8").partition(MARK)
    PAGE.write_text(before + mark + rows, encoding="utf-8")
