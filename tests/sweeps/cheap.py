"""A sweep with a cheap evaluation, driven here or in a process that a test can kill."""

from __future__ import annotations

import asyncio
import math
import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from optuna.trial import TrialState

from backbones.cliptex.training.recipes import RECIPES
from reports.mlflow.run import Run, Tracker
from sweeps.driver import Evaluate, Evaluation, drive
from sweeps.objective import ObjectiveTask, make_objectives
from sweeps.space import BASE, SearchRequest, make_space
from sweeps.study import Plan, Sweep, load_sweep, sole_driver, start_sweep

TASKS = {
    "seg/linear": ObjectiveTask({"mIoU": 1, "aAcc": 1}, "dense"),
    "depth/linear": ObjectiveTask({"abs_rel": -1}, "dense", 1e-6),
    "class/zero-shot": ObjectiveTask({"top1": 1}, "zero-shot"),
}
BASELINE = {
    "seg/linear": {"mIoU": 28.0, "aAcc": 60.0},
    "depth/linear": {"abs_rel": 0.32},
    "class/zero-shot": {"top1": 50.0},
}


def measure(params: Mapping[str, Any]) -> dict[str, dict[str, float]]:
    """A smooth made-up response to λs, with its best where the paper has it: λ_seg 0.1, the others
    1."""
    log = {
        name: math.log10(params[f"lambda_{name}"]) for name in ("clip", "seg", "depth", "normal")
    }
    return {
        "seg/linear": {"mIoU": 30 - (log["seg"] + 1) ** 2 - log["clip"] ** 2, "aAcc": 61.0},
        "depth/linear": {"abs_rel": 0.30 + 0.01 * log["depth"] ** 2 + 0.001 * log["normal"] ** 2},
        "class/zero-shot": {"top1": 50 - 3 * log["clip"] ** 2},
    }


def start(
    storage: str,
    name: str = "cheap",
    *,
    search: str = "linear",
    objectives: Sequence[str] = ("gain",),
    prune: str = "",
    zero_shot_loss: float = 100.0,
    **space: Any,
) -> Sweep:
    """A study on the cheap tasks, with their baseline."""
    fixed = {"recipe": "cliptex", "epochs": 2.0}
    inputs = {"suite": "cheap", "fixed": fixed, "zero_shot_loss": zero_shot_loss}
    recipe = RECIPES["cliptex"].changed(BASE)
    searched = make_space(SearchRequest(search=search, **space), recipe)
    plan = Plan(searched, make_objectives(objectives, TASKS), TASKS, inputs, prune)
    sweep = start_sweep(name, storage, plan)
    sweep.store("baseline", BASELINE)
    return sweep


async def evaluate(params: Mapping[str, Any], run: str, pruning: Any) -> Evaluation:
    """What ``measure`` says."""
    return Evaluation(measure(params), {"weights.sha256": "0"}, {"train_seconds": 1.0})


def finish(
    sweep: Sweep, tracker: Tracker, how: Evaluate = evaluate, *, width: int = 3, lines: Any = None
) -> int:
    """Drive a study to its end, under a parent run that is kept with it, as ``sweep launch``
    does."""
    report = (lambda line: None) if lines is None else lines.append
    with sole_driver(sweep):
        if "mlflow" not in sweep.metadata:
            parent = tracker.client.create_run(tracker.experiment_id, run_name="sweep").info.run_id
            tracker.client.set_terminated(parent)
            sweep.store("mlflow", {"run": parent})
        parent = Run(tracker, sweep.metadata["mlflow"]["run"], sweep.name)
        return asyncio.run(drive(sweep, how, tracker, parent, width=width, on_line=report))


def drive_slowly(storage: str, store: str, experiment: str, folder: Path) -> None:
    """``finish``, leaving a file for each trial and taking some time for it."""

    async def slow(params: Mapping[str, Any], run: str, pruning: Any) -> Evaluation:
        (folder / f"begun-{run}").touch()
        await asyncio.sleep(random.uniform(0.0, 0.1))
        return await evaluate(params, run, pruning)

    finish(load_sweep("cheap", storage), Tracker(experiment, store), slow, width=2)


def hold(storage: str, folder: Path) -> None:
    """Drive a study without ever ending."""
    with sole_driver(load_sweep("cheap", storage)):
        (folder / "driving").touch()
        asyncio.run(asyncio.sleep(600))


def completed(sweep: Sweep) -> list[str]:
    """Cells of COMPLETE trials, in order of the cells; one that is there twice is twice in it."""
    return sorted(
        trial.user_attrs["cell"] for trial in sweep.trials() if trial.state == TrialState.COMPLETE
    )


def cells(sweep: Sweep) -> list[str]:
    """All cells, in order."""
    return sorted(sweep.space.cells())
