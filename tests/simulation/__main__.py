"""``python -m tests.simulation [REPORTS]``: write the table of ``docs/statistics.md``."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

from tests.simulation.world import World, run

PAGE = Path(__file__).parents[2] / "docs" / "statistics.md"
MARK = "<!-- table -->\n"
UNEQUAL = ((0, 1, 2, 3, 4), (0, 1, 2))
WORLDS: dict[str, tuple[World, float]] = {  # and the share of the reports
    "null, 2 backbones, 7 tasks": (World(), 1),
    "null, 2 backbones, 20 tasks": (World(tasks=20), 0.5),
    "null, 10 backbones, 7 tasks": (World(10), 0.5),
    "null, 10 backbones, 20 tasks": (World(10, 20), 0.15),
    "null, all tasks on the same images": (World(5, 7, one_set=True), 0.5),
    "null, seeds shared by all tasks": (World(shared=0.8, seed=0.2), 1),
    "null, seeds alone vary": (World(seed=3.0, apart=0.5, interaction=0.5, binary=False), 1),
    "null, images alone vary": (World(seed=0.0, shared=0.0, interaction=0.0), 1),
    "null, interaction alone": (
        World(seed=0.0, shared=0.0, apart=0.0, interaction=20.0, binary=False),
        1,
    ),
    "null, seeds 0–4 against 0–2": (World(seeds=UNEQUAL), 1),
    "null, seeds 0–2 against 3–5": (World(seeds=((0, 1, 2), (3, 4, 5))), 1),
    "null, two tasks with one seed": (World(single=2), 1),
    "null, five seeds": (World(seeds=((0, 1, 2, 3, 4),)), 1),
    "null, one seed (of these weights)": (World(seeds=((0,),), seed=0.0, shared=0.0), 1),
    "null, 30 images": (World(images=30), 1),
    "better by 2 points, 7 tasks": (World(effect=2.0), 1),
    "better by 2 points, five seeds": (World(effect=2.0, seeds=((0, 1, 2, 3, 4),)), 1),
    "better by 2 points, 5 of 10 seeds apart": (
        World(effect=2.0, seeds=((0, 1, 2, 3, 4), (5, 6, 7, 8, 9))),
        0.5,
    ),
    "better by 2 points, 10 backbones, 20 tasks": (World(10, 20, effect=2.0), 0.15),
    "better by 2 points, 1,000 images": (World(effect=2.0, images=1000), 0.3),
}
HEADS = (
    "reports",
    "headline or verdict false (%)",
    "headline right (%)",
    "covers: numbers",
    "differences",
    "mean gain",
)


def table(reports: int) -> str:
    """A row for each world, in Markdown."""
    lines = [f"| what is simulated | {' | '.join(HEADS)} |", "|---" * (len(HEADS) + 1) + "|"]
    for name, (world, share) in WORLDS.items():
        rates = run(world, max(20, int(reports * share)), np.random.default_rng(1))
        right = f"{100 * rates.right:.0f}" if world.effect else ""
        covers = [f"{100 * x:.1f}" for x in (rates.numbers, rates.differences, rates.gains)]
        row = [name, f"{rates.reports}", f"{100 * rates.false:.1f}", right, *covers]
        lines.append(f"| {' | '.join(row)} |")
        print(lines[-1], flush=True)
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    rows = table(int(sys.argv[1]) if len(sys.argv) > 1 else 250)
    before, mark, _ = PAGE.read_text(encoding="utf-8").partition(MARK)
    PAGE.write_text(before + mark + rows, encoding="utf-8")
