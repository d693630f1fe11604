"""Score the checkpoints of a folder as a training writes them: a run of the suite for each, and
their curves by training step in one MLflow run. A scored checkpoint is not scored again."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

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


def watch(options: WatchOptions, on_result: Callable[[int, RunResult], None]) -> int:
    """Score checkpoints until the end that the options define, and call ``on_result`` with each
    step's result; returns how many had a failed task.

    Raises:
        UserError: no such folder, more than one backbone, or as ``run``.
        KeyboardInterrupt: interrupted; the same command continues.
    """
    plan = make_plan(replace(options.run, weights=Path("checkpoint")))  # checks the options
    if not options.folder.is_dir():
        raise UserError(
            f"no folder {options.folder}; give the one that the training writes its checkpoints to"
        )
    settings = {**plan.as_config_file(), "weights": None}
    identity = [settings, str(options.folder.resolve())]
    lock = lock_path("watch", identity)
    message = f"another process watches {options.folder}: waiting for it"
    with locked(lock, lambda: console.print(message, markup=False)):
        tracker = Tracker(plan.experiment)
        earlier = tracker.search(f"tags.`watch.key` = '{lock.stem}'")
        names = {"backbone": plan.names[0], "suite": plan.suite.name}
        tags = {
            "stage": "watch",
            "seed": str(options.run.seed),
            "watch.key": lock.stem,
            "watch.folder": str(options.folder.resolve()),
            **names,
        }
        title = f"watch · {plan.names[0]} · {plan.suite.name}"
        resume = earlier[0].info.run_id if earlier else None
        with tracker.run(title, tags=tags, params=names, resume=resume) as curves:
            stored = dict(earlier[0].data.tags) if earlier else {}
            scored = {step: stored[f"step.{step}"].split()[0] for step in _steps(stored)}
            return _watch(options, curves, scored, on_result)


def _steps(tags: dict[str, str]) -> list[int]:
    return [int(tag.removeprefix("step.")) for tag in tags if re.fullmatch(r"step\.\d+", tag)]


def _watch(
    options: WatchOptions,
    curves: Run,
    scored: dict[int, str],
    on_result: Callable[[int, RunResult], None],
) -> int:
    """Look for new checkpoints; ``scored`` has the state of each step's file when it was scored."""
    failures = 0
    seen: dict[int, str] = {}  # step → state of its file at the last look
    unreadable: dict[int, str] = {}
    while True:
        files = checkpoints(options.folder)
        states = {step: _state(path) for step, path in files.items()}
        for step, path in files.items():
            is_complete = options.once or seen.get(step) == states[step]
            if scored.get(step) == states[step] or not is_complete:
                continue
            try:
                load_checkpoint(path)
            except UserError as error:  # it may be written still
                if options.once:
                    raise
                if unreadable.get(step) != states[step]:
                    console.print(f"step {step}: {error}; trying again", style="yellow")
                unreadable[step] = states[step]
                continue
            console.print(f"step {step}: {path.name}", style="bold")
            result = run(replace(options.run, weights=path))
            _log(curves, step, states[step], result)
            failures += bool(result.failed)
            scored[step] = states[step]
            on_result(step, result)
            break  # a run takes long: look again, to keep the order of steps
        else:
            is_last_scored = options.until is not None and max(scored, default=-1) >= options.until
            if options.once or is_last_scored:
                return failures
            time.sleep(options.every)
        seen = states


def _log(curves: Run, step: int, state: str, result: RunResult) -> None:
    metrics = {
        f"{cell.task}/{name}": value
        for cell in result.cells
        for name, value in cell.metrics.items()
    }
    curves.log_metrics(metrics, step)
    curves.flush()
    if not result.failed:  # otherwise the next watch tries it again
        (parent,) = result.run_ids.values()
        curves.set_tags({f"step.{step}": f"{state} {parent}"})


def checkpoints(folder: Path) -> dict[int, Path]:
    """Step → weights file, in the order of steps. Raises ``UserError`` if two files have the same
    step."""
    files: dict[int, Path] = {}
    for path in sorted(folder.iterdir()):
        numbers = re.findall(r"\d+", path.stem)
        if path.suffix not in SUFFIXES or not numbers or path.name.startswith("."):
            continue
        step = int(numbers[-1])
        if step in files:
            raise UserError(
                f"{files[step].name} and {path.name} in {folder} are both of step {step}; move one"
                " away"
            )
        files[step] = path
    return dict(sorted(files.items()))


def _state(path: Path) -> str:
    """Changes whenever the file does."""
    try:
        status = path.stat()
    except OSError:
        return ""
    return f"{status.st_size}-{status.st_mtime_ns}"
