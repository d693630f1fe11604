"""A sweep whose recipes are not trained, driven here or in a process that a test can kill."""

from __future__ import annotations

import asyncio
import math
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import benchmark.catalog  # noqa: F401 – registers the tasks
from backbones.cliptex.recipes import RECIPES, Recipe
from reports.tracking import Run, Tracker
from sweeps.space import LAMBDAS, SearchOptions, make_space
from sweeps.study import create_study, sole_driver, storage_url
from sweeps.trial import Evaluate, Sweep

RECIPE = RECIPES["cliptex"].changed(dict.fromkeys(LAMBDAS, 1.0))
BASELINE = {
    "mini-seg/linear": {"mIoU": 28.0, "aAcc": 60.0},
    "mini-depth/linear": {"abs_rel": 0.32},
    "mini-class/zero-shot": {"top1": 50.0},
}


def measure(recipe: Recipe) -> dict[str, dict[str, float]]:
    """A smooth made-up response to λs, with its best where the paper has it: λ_seg 0.1, the others
    1."""
    if recipe.name == "clip-ft":
        return BASELINE
    clip, seg, depth = (math.log10(recipe.loss_weights[name]) for name in ("clip", "seg", "depth"))
    return {
        "mini-seg/linear": {"mIoU": 30 - (seg + 1) ** 2 - clip**2, "aAcc": 61.0},
        "mini-depth/linear": {"abs_rel": 0.30 + 0.01 * depth**2},
        "mini-class/zero-shot": {"top1": 49 - 3 * clip**2},
    }


async def evaluate(recipe: Recipe, run: Run) -> dict[str, dict[str, float]]:
    """What ``measure`` says."""
    await asyncio.sleep(0)
    return measure(recipe)


def sweep_of(
    storage: str,
    tracker: Tracker,
    evaluate: Evaluate = evaluate,
    lines: list[str] | None = None,
    **search: Any,
) -> Sweep:
    """The sweep ``cheap`` over λs."""
    space = make_space(SearchOptions(**search), RECIPE)
    study = create_study("cheap", storage_url(storage))
    notify = lambda line: None if lines is None else lines.append(line)
    return Sweep(study, space, RECIPE, evaluate, tracker, notify)


def finish(sweep: Sweep, width: int = 2, seeds: Sequence[int] = ()) -> Sweep:
    """Run it to its end."""
    asyncio.run(sweep.run(width, seeds))
    return sweep


def values(sweep: Sweep) -> list[tuple[dict[str, Any], float]]:
    """Params and value of each finished trial; one that is there twice is twice in it."""
    trials = [trial for trial in sweep.study.trials if trial.state.name == "COMPLETE"]
    return sorted(((trial.params, trial.value) for trial in trials), key=str)


def drive_slowly(
    storage: str, store: str, experiment: str, folder: Path, search: dict[str, Any]
) -> None:
    """``finish`` with a file for each recipe, which takes some time."""

    async def slow(recipe: Recipe, run: Run) -> dict[str, dict[str, float]]:
        (folder / f"begun-{run.id}").touch()
        await asyncio.sleep(random.uniform(0.0, 0.1))
        return measure(recipe)

    tracker = Tracker(experiment, store)
    with sole_driver("cheap", storage_url(storage)):
        tracker.close_stale()  # as ``sweep launch`` does
        finish(sweep_of(storage, tracker, slow, **search), 1)


def hold(storage: str, folder: Path) -> None:
    """Drive a study without ever ending."""
    with sole_driver("cheap", storage_url(storage)):
        (folder / "driving").touch()
        asyncio.run(asyncio.sleep(600))
