"""A folder of checkpoints, each scored as it appears: a run of the suite for each, and their curves
by training step in one run of MLflow. What was scored is not scored again, whoever watches and
whenever."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from backbones.checkpoint import load_checkpoint
from benchmark.execution.progress import console
from benchmark.options import WatchOptions
from benchmark.plan import make_plan
from benchmark.results.outcome import RunResult
from benchmark.run import run
from common.errors import UserError
from common.locks import lock_path, locked
from reports.mlflow.run import Run, Tracker

SUFFIXES = (".safetensors", ".pt", ".pth", ".bin")


def checkpoints(folder: Path) -> dict[int, Path]:
    """Step → weights file, in the order of steps.

    Raises:
        UserError: two files are of one step, or a step is beyond what MLflow keeps.
    """
    found: dict[int, Path] = {}
    for path in sorted(folder.iterdir()):
        numbers = re.findall(r"\d+", path.stem)
        if path.suffix not in SUFFIXES or not numbers or path.name.startswith("."):
            continue
        step = int(numbers[-1])
        if step >= 1 << 63:
            raise UserError(
                f"step {step} of {path.name} in {folder} is beyond 63 bits, which MLflow keeps;"
                " move it away"
            )
        if step in found:
            raise UserError(
                f"{found[step].name} and {path.name} in {folder} are both of step {step}; move one"
                " away"
            )
        found[step] = path
    return dict(sorted(found.items()))


def watch(
    options: WatchOptions, told: Callable[[int, RunResult], None] = lambda step, result: None
) -> int:
    """Score checkpoints until the end that the options say; returns how many had a failed task.

    Args:
        told: is told of each step's result.
    Raises:
        UserError: no such folder, more than one backbone, or what a run raises.
        KeyboardInterrupt: interrupted; the same command goes on.
    """
    plan = make_plan(
        replace(options.run, weights=Path("checkpoint"))
    )  # names, tasks and settings are checked at once
    (name,) = plan.names
    if not options.folder.is_dir():
        raise UserError(
            f"no folder {options.folder}; give the one that the training writes its checkpoints to"
        )
    said = f"another process watches {options.folder}: waiting for it"
    lock = lock_path("watch", _key(options))
    with locked(lock, lambda: console.print(said, markup=False)):
        tracker = Tracker(plan.experiment)
        tags = {
            "stage": "watch",
            "backbone": name,
            "suite": plan.suite.name,
            "seed": str(options.run.seed),
        }
        key = lock.stem
        earlier = tracker.search(f"tags.`watch.key` = '{key}'")
        with tracker.run(
            f"watch · {name} · {plan.suite.name}",
            tags={**tags, "watch.key": key, "watch.folder": str(options.folder.resolve())},
            params={"backbone": name, "suite": plan.suite.name},
            resume=earlier[0].info.run_id if earlier else None,
        ) as curves:
            return _Watch(
                options, curves, dict(earlier[0].data.tags) if earlier else {}, told
            ).until_the_end()


def _key(options: WatchOptions) -> dict[str, Any]:
    """Watches of equal keys are one."""
    run = options.run
    return {
        "backbones": list(run.backbones),
        "suite": run.suite,
        "tasks": list(run.tasks),
        "seed": run.seed,
        "limit": run.limit,
        "set": list(run.overrides),
        "folder": str(options.folder.resolve()),
    }


class _Watch:
    """A watch under way; ``scored`` has the tag of each step that was: its file, as it was, and its
    run."""

    def __init__(
        self,
        options: WatchOptions,
        curves: Run,
        tags: dict[str, str],
        told: Callable[[int, RunResult], None],
    ) -> None:
        self.options, self.curves, self.told, self.failed = options, curves, told, 0
        self.scored = {
            int(tag[5:]): value.split()[0]
            for tag, value in tags.items()
            if re.fullmatch(r"step\.\d+", tag)
        }
        self.seen: dict[int, str] = {}  # as of the last look
        self.unreadable: dict[int, str] = {}

    def until_the_end(self) -> int:
        options = self.options
        while True:
            found = checkpoints(options.folder)
            states = {step: _state(path) for step, path in found.items()}
            new = [step for step in found if self.scored.get(step) != states[step]]
            ready = [step for step in new if options.once or self.seen.get(step) == states[step]]
            self.seen = states
            for step in ready:
                if self._score(step, found[step], states[step]):
                    break  # a run takes long: look again, so that steps are taken in their order
            else:
                over = options.until is not None and any(
                    step >= options.until for step in self.scored
                )
                if options.once or over:
                    return self.failed
                time.sleep(options.every)

    def _score(self, step: int, path: Path, state: str) -> bool:
        """Whether there is a result. A file that cannot be read may not be whole yet: it is said
        once, and tried at each look."""
        try:
            load_checkpoint(path)
        except UserError as error:
            if self.options.once:
                raise
            if self.unreadable.get(step) != state:
                console.print(f"step {step}: {error}; trying again", style="yellow", markup=False)
            self.unreadable[step] = state
            return False
        console.print(f"step {step}: {path.name}", style="bold", markup=False)
        result = run(replace(self.options.run, weights=path))
        metrics = {
            f"{cell.task}/{name}": value
            for cell in result.cells
            for name, value in cell.metrics.items()
        }
        self.curves.log_metrics(metrics, step)
        self.curves.flush()
        if result.failed:  # its other numbers count; the next watch tries it again
            self.failed += 1
        else:
            (parent,) = result.run_ids.values()
            self.curves.set_tags({f"step.{step}": f"{state} {parent}"})
        self.scored[step] = state
        self.told(step, result)
        return True


def _state(path: Path) -> str:
    """Changes whenever the file does."""
    try:
        found = path.stat()
    except OSError:
        return ""
    return f"{found.st_size}-{found.st_mtime_ns}"
