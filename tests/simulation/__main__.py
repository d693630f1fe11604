"""``python -m tests.simulation [REPORTS]``: write the table of ``docs/simulations.md``."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from tests.simulation import real
from tests.simulation.world import Rates, World, run, run_places

PAGE = Path(__file__).parents[2] / "docs" / "simulations.md"
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


def seeds(count: int, noise: float = 0.5) -> dict[str, Any]:
    """The settings of worlds with so many seeds; of one, the weights are the ground truth."""
    return {"seeds": count, "seed": 0.0 if count == 1 else noise}


def mixed(rng: np.random.Generator, count: int) -> World:
    """2–10 backbones × 3–20 tasks × 20–2,000 images, half of them heavy-tailed."""
    return World(
        backbones=int(rng.integers(2, 11)),
        tasks=int(rng.integers(3, 21)),
        images=round(float(np.exp(rng.uniform(np.log(20), np.log(2000))))),
        of_seed=float(rng.choice([0.0, 0.33])),
        heavy=bool(rng.random() < 0.5),
        binary=float(rng.random()),
        **seeds(count, float(rng.choice([0.5, 3.6]))),
    )


BETTER: dict[str, Any] = {"images": 500, "effect": 3.0}
TRAINED: dict[str, Any] = {"seed": 3.6, "of_pair": 0.7, "of_seed": 0.3}  # as in the stored run
GRID: dict[str, dict[str, Any]] = {
    "all equal": {"further": 4},
    "all equal, main metrics only": {},
    "six of seven tasks differ": {"effect": 9.0, "differ": 0.86, "further": 4},
    # of two equally good ones, none must be bold
    "two of three better": {"backbones": 3, "better": 2, "effect": 9.0, "further": 1},
    "heavy tails": {"heavy": True, "further": 4},
    "one task 10 times noisier": {"noisy_task": 10.0, "further": 4},
}
UNEQUAL = {"012 and 013": (3, (0, 1, 3)), "01234 and 567": (5, (5, 6, 7))}
# seeds are noisier than images; tasks have half of that noise in common
UNEVEN: dict[str, Any] = {"seed": 2.0, "of_seed": 0.5}
TASK_SEEDS = {
    "six tasks with seeds 012, one with 01234": (*[(0, 1, 2)] * 6, (0, 1, 2, 3, 4)),
    "tasks with seeds 01, 012, 0123 and 01234": ((0, 1), (0, 1, 2), (0, 1, 2, 3), (0, 1, 2, 3, 4)),
    "tasks with seeds 012, 123, 234 and 345": ((0, 1, 2), (1, 2, 3), (2, 3, 4), (3, 4, 5)),
}
WORLDS: dict[str, World | Callable[[np.random.Generator], World]] = {
    **{
        f"{name}, {n} seeds": World(**each, **seeds(n))
        for n in (3, 5, 2, 1)
        for name, each in GRID.items()
        if n > 1 or "noisy_task" not in each
    },
    **{f"better by 3, seed noise 0.5, {n} seeds": World(**BETTER, **seeds(n)) for n in (3, 5, 2)},
    "better by 3 in further metrics, too, 3 seeds": World(**BETTER, further=4, further_effect=3.0),
    **{
        f"seeds {name}, better by {effect}": World(
            images=500, seeds=n, base_seeds=of_base, seed=1.0, effect=effect, of_pair=0.5
        )
        for name, (n, of_base) in UNEQUAL.items()
        for effect in (0.0, 3.0)
    },
    **{
        f"{name}, better by {effect}": World(task_seeds=of_tasks, effect=effect, **UNEVEN)
        for effect in (0.0, 3.0)
        for name, of_tasks in {"tasks with seeds 012": ((0, 1, 2),), **TASK_SEEDS}.items()
    },
    "tasks on the same images, 3 seeds": World(of_image=0.5, binary=0.0),
    **{
        f"seeds {ratio} times as noisy as images, {n} seeds": World(
            binary=0.0, further=1, **seeds(n, 0.67 * ratio)
        )
        for ratio in (0.1, 0.3, 1, 3, 10, 30)
        for n in (2, 3)
    },
    "no scores of images, 3 seeds": World(seed=0.2, scored=False),
    **{
        f"{level:g} against {level + effect:g} %, {images} images, 3 seeds": World(
            images=images, level=level, effect=effect, seed=0.3
        )
        for level, effect, images in ((3.0, 3.0, 300), (3.0, 0.0, 1000), (98.0, 0.8, 500))
    },
    "2 of 6 backbones 5 times noisier, 3 seeds": World(6, seed=1.5, noisy_backbones=5.0),
    "better by 3, seed noise 3.6, 3 seeds": World(**BETTER, **TRAINED),
    "all equal, mixed, 3 seeds": partial(mixed, count=3),
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
            for n in (2, 3, 5)
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
        name = name.replace(", 1 seeds", ", 1 seed").replace(
            "1 further metrics", "1 further metric"
        )
        lines.append(f"| {name} | {' | '.join(cells)} |")
        print(lines[-1], flush=True)
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    text = table(int(sys.argv[1]) if len(sys.argv) > 1 else 500)
    page = PAGE.read_text(encoding="utf-8")
    before, after = page.split(START)[0], page.split(END)[1]
    PAGE.write_text(f"{before}{START}{text}{END}{after}", encoding="utf-8")
