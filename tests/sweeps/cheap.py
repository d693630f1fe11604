"""Workers with a cheap evaluation, as processes that a test can kill: optuna and MLflow are imported once, before the forks."""

from __future__ import annotations

import math
import os
import signal
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from optuna.trial import TrialState
from sqlalchemy import event

from reports.tracking import Tracker
from sweeps.cells import end_trial, next_trial, progress
from sweeps.objective import TaskFacts, make_objectives
from sweeps.space import make_space
from sweeps.study import Plan, Sweep, load_sweep, start_sweep
from sweeps.worker import Evaluation, work
from tests.forks import FORKS

TASKS = {
    "seg/linear": TaskFacts({"mIoU": 1, "aAcc": 1}, "dense"),
    "depth/linear": TaskFacts({"abs_rel": -1}, "dense"),
    "class/zero-shot": TaskFacts({"top1": 1}, "zero-shot"),
}
BASELINE = {
    "seg/linear": {"mIoU": 28.0, "aAcc": 60.0},
    "depth/linear": {"abs_rel": 0.32},
    "class/zero-shot": {"top1": 50.0},
}


def measure(params: Mapping[str, Any]) -> dict[str, dict[str, float]]:
    """A smooth made-up response to λs, with its best where the paper has it: λ_seg 0.1, the others 1."""
    log = {name: math.log10(params[f"lambda_{name}"]) for name in ("clip", "seg", "depth", "normal")}
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
    grace: int = 60,
    prune: str = "",
    **space: Any,
) -> Sweep:
    """A study on the cheap tasks, with their baseline."""
    identity = {"suite": "cheap", "fixed": {"recipe": "cliptex", "epochs": 2.0}}
    plan = Plan(make_space(search, **space), make_objectives(objectives, TASKS), identity, prune=prune, grace=grace)
    sweep = start_sweep(name, storage, plan)
    sweep.note("baseline", BASELINE)
    sweep.note("tasks", {task: {"metrics": dict(facts.metrics), "group": facts.group} for task, facts in TASKS.items()})
    return sweep


def drain(storage: str, log: Path | str, kill_at: int = 0) -> None:
    """Take and end cells until none is left, as a worker does; with ``kill_at``, die by SIGKILL at that SQL statement."""
    sweep = load_sweep("cheap", storage)
    if kill_at:
        seen = 0

        def count(*_: Any) -> None:
            nonlocal seen
            seen += 1
            if seen >= kill_at:
                os.kill(os.getpid(), signal.SIGKILL)

        event.listen(sweep.storage.engine, "before_cursor_execute", count)
        event.listen(sweep.storage.engine, "commit", count)
    while progress(sweep).left:
        trial = next_trial(sweep, None, lambda lost: None)
        if trial is None:
            time.sleep(0.1)
            continue
        params = sweep.space.suggest(trial)
        with Path(log).open("a") as file:
            file.write(f"{trial.user_attrs['cell']}\n")
        values = [objective.value(measure(params), BASELINE) for objective in sweep.objectives]
        end_trial(sweep, trial, TrialState.COMPLETE, values, {"by": os.getpid()})


def take_and_die(storage: str) -> None:
    """Take a cell and vanish."""
    next_trial(load_sweep("cheap", storage), None, lambda lost: None)
    os.kill(os.getpid(), signal.SIGKILL)


def track(storage: str, uri: str, number: int, folder: Path, hang: bool) -> None:
    """A whole worker with MLflow, as if on a machine of its own; with ``hang`` it never ends its first trial."""
    sweep = load_sweep("cheap", storage)

    def evaluate(params: Mapping[str, Any], run: Any, report: Any) -> Evaluation:
        with run.tracker.run("train", parent=run):
            (folder / f"worker-{number}").touch()
            while hang:
                signal.pause()
        return Evaluation(measure(params), {"weights.sha256": f"{number}"})

    mine = {"machine": f"machine-{number}", "process": f"{os.getpid()}:1"}  # so that only its heartbeat tells
    work(sweep, evaluate, Tracker("sweep", uri), process=mine, poll=0.1)


def fork(target: Any, *args: Any) -> Any:
    """Start ``target(*args)`` in a process of its own."""
    process = FORKS.Process(target=target, args=args)
    process.start()
    return process


def wait_for(condition: Any, seconds: float = 60.0) -> None:
    """Until ``condition()`` holds; fails the test when it never does."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.02)


def completed(sweep: Sweep) -> list[str]:
    """Cells of COMPLETE trials, in order of the cells; one that is there twice is twice in it."""
    return sorted(trial.user_attrs["cell"] for trial in sweep.trials() if trial.state == TrialState.COMPLETE)
