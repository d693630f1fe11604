"""``python -m tests.simulation [REPORTS]``: write the table of ``docs/statistics.md``."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from tests.simulation import real
from tests.simulation.world import Rates, World, run, run_places

PAGE = Path(__file__).parents[2] / "docs" / "statistics.md"
START, END = "<!-- table -->\n", "<!-- end of table -->\n"
HEADS = (
    "false",
    "decided",
    "mean decided",
    "numbers",
    "differences",
    "gains",
    "mean gains",
    "places",
)


def seeds(count: int) -> dict[str, Any]:
    """The settings of worlds with so many seeds; of one, the weights are the ground truth."""
    return {"seeds": count, **({"seed": 0.0} if count == 1 else {})}


def mixed(rng: np.random.Generator, count: int) -> World:
    """2–10 backbones × 3–20 tasks × 20–2,000 images, half of them heavy-tailed."""
    return World(
        backbones=int(rng.integers(2, 11)),
        tasks=int(rng.integers(3, 21)),
        images=round(float(np.exp(rng.uniform(np.log(20), np.log(2000))))),
        of_seed=float(rng.choice([0.0, 0.33])),
        heavy=bool(rng.random() < 0.5),
        binary=float(rng.random()),
        **{"seed": float(rng.choice([0.5, 3.6])), **seeds(count)},
    )


BETTER: dict[str, Any] = {"images": 500, "effect": 3.0}
TRAINED: dict[str, Any] = {"seed": 3.6, "of_pair": 0.7, "of_seed": 0.3}  # as in the stored run
WORLDS: dict[str, World | Callable[[np.random.Generator], World]] = {
    **{f"null, mixed, {n} seeds": partial(mixed, count=n) for n in (1, 2, 3, 5)},
    "null, 13 backbones, 3 seeds": World(13, 5),
    **{f"null, seed noise 3.6, {n} seeds": World(seed=3.6, **seeds(n)) for n in (2, 3, 5)},
    "null, one task 10 times noisier, 3 seeds": World(noisy_task=10.0),
    "null, seed noise unlike by a factor of 3, 3 seeds": World(seed=1.0, unlike=1.15),
    "null, 2 of 6 backbones 5 times noisier, 3 seeds": World(6, seed=1.5, noisy_backbones=5.0),
    "null, a third of seed noise shared by tasks, 3 seeds": World(seed=1.5, of_seed=0.33),
    **{f"better by 3, seed noise 0.5, {n} seeds": World(**BETTER, **seeds(n)) for n in (2, 3, 5)},
    **{
        f"better by 3, seed noise 3.6, {tasks} tasks, {n} seeds": World(
            tasks=tasks, **BETTER, **TRAINED, **seeds(n)
        )
        for n in (3, 5)
        for tasks in (3, 7)
    },
    **{
        f"better by 3, seed noise 3.6 on average, unlike as in the stored run, {n} seeds": World(
            unlike=0.64, **BETTER, **{**TRAINED, "seed": 2.9}, **seeds(n)
        )
        for n in (3, 5)
    },
    **{
        f"98 against 98.8 %, {images} images, {n} seeds": World(
            images=images, level=98.0, effect=0.8, **seeds(n)
        )
        for images in (50, 500)
        for n in (1, 3)
    },
    **{
        f"2.7 against 3.2 %, {images} images, 3 seeds": World(
            images=images, level=2.7, effect=0.5, seed=0.3
        )
        for images in (300, 1000, 2000)
    },
}
RANKINGS = {
    "places, 10 equal backbones, a fifth 5 times noisier": World(10, 7, noisy_backbones=5.0),
    "places, 10 equal backbones, a third of seed noise shared": World(10, 7, of_seed=0.33),
    "places, one of 13 better by 3": World(13, 7, effect=3.0, **seeds(5)),
}


def rows(reports: int) -> Mapping[str, Callable[[], Rates]]:
    """What is simulated, and how."""
    rng = partial(np.random.default_rng, 2)
    result: dict[str, Callable[[], Rates]] = {
        name: partial(run, world, reports, rng()) for name, world in WORLDS.items()
    }
    result |= {name: partial(run_places, world, reports, rng()) for name, world in RANKINGS.items()}
    if real.RUN.is_file():
        nine = [*real.stored()][: real.NINE]
        result |= {
            f"real backbone against itself, {n} seeds": partial(real.run_null, n, reports, rng())
            for n in (1, 2)
        }
        result |= {
            f"{len(groups[0])} real backbones, {n} seeds": partial(real.run_differences, groups, n)
            for n in (3, 5)
            for groups in ([[nine[0], name] for name in nine[1:]], [nine], [[*real.stored()][:12]])
        }
    return result


def table(reports: int) -> str:
    """A row for each world, in Markdown: percent ± one standard error."""
    lines = [f"| what is simulated | {' | '.join(HEADS)} |", "|---" * (len(HEADS) + 1) + "|"]
    for name, simulate in rows(reports).items():
        rates = simulate()
        cells = [
            f"{100 * rates[head][0]:.1f} ± {100 * rates[head][1]:.1f}" if head in rates else ""
            for head in HEADS
        ]
        lines.append(f"| {name.replace(', 1 seeds', ', 1 seed')} | {' | '.join(cells)} |")
        print(lines[-1], flush=True)
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    text = table(int(sys.argv[1]) if len(sys.argv) > 1 else 500)
    page = PAGE.read_text(encoding="utf-8")
    before, after = page.split(START)[0], page.split(END)[1]
    PAGE.write_text(f"{before}{START}{text}{END}{after}", encoding="utf-8")
