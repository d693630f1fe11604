"""Score the checkpoints of a folder as a training writes them: a run of the suite for each, and
their curves by training step in one MLflow run. A scored checkpoint is not scored again."""

from __future__ import annotations

import math
import re
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path

from safetensors.torch import save_file
from torch import Tensor

from backbones.checkpoint import load_checkpoint
from benchmark.options import WatchOptions, run_options
from benchmark.plan import Plan, make_plan
from benchmark.progress import console
from benchmark.result import RunResult
from benchmark.run import run
from cliptex_common.errors import UserError
from cliptex_common.files import atomic_write, lock_path, locked
from reports.records import TAGS
from reports.tracking import Tracker


def watch(options: WatchOptions, on_result: Callable[[RunResult], None]) -> int:
    """Score checkpoints until the end that the options define; returns how many had a failed task.

    Raises:
        UserError: no such folder, more than one backbone, or as ``run``.
        KeyboardInterrupt: interrupted; the same command continues.
    """
    if not (options.suite or options.tasks):
        options = replace(options, suite="companion")
    plan = make_plan(run_options(options, only=True))
    if len(plan.backbones) != 1:
        raise UserError(f"watch takes one backbone, not {', '.join(plan.backbones)}")
    if not options.dir.is_dir():
        raise UserError(f"no folder {options.dir}; give the one with the training's checkpoints")
    lock = lock_path("watch", [plan.as_config_file(), str(options.dir.resolve())])
    message = f"another process watches {options.dir}: waiting for it"
    with locked(lock, lambda: console.print(message)):  # its name is a hash of what is watched
        return _follow(options, plan, lock.stem, on_result)


def _follow(
    options: WatchOptions, plan: Plan, key: str, on_result: Callable[[RunResult], None]
) -> int:
    """Score checkpoints in the MLflow run of the watch ``key``."""
    tracker = Tracker(plan.experiment)
    earlier = next(tracker.search(**{TAGS["watch_key"]: key}), None)
    stored = earlier.tags if earlier else {}
    scored = {int(tag[5:]): stored[tag] for tag in stored if tag.startswith("step.")}
    resume = earlier.run_id if earlier else None
    names = {"backbone": plan.backbones[0], "suite": plan.suite.name}
    tags = {"stage": "watch", "seed": str(options.seed), TAGS["watch_key"]: key, **names}
    title = f"watch · {plan.backbones[0]} · {plan.suite.name}"
    failures = 0
    with tracker.run(title, tags=tags, params=names, resume=resume) as curves:
        for step, path in _arrivals(options, scored):
            console.print(f"step {step}: {path.name}", style="bold")
            result = run(run_options(options, only=True, weights=path))
            for cell in result.cells:
                metrics = {f"{cell.task}/{name}": value for name, value in cell.metrics.items()}
                curves.log_metrics(metrics, step)
            curves.flush()
            if result.failed:  # the next watch tries it again
                failures += 1
            else:
                curves.set_tags({f"step.{step}": scored[step]})
            on_result(result)
    return failures


def _arrivals(options: WatchOptions, scored: dict[int, str]) -> Iterator[tuple[int, Path]]:
    """Step and file of each new or changed checkpoint, in order of steps; waits for the next.

    Args:
        scored: step → ``_version`` of the file that was scored; updated.
    """
    last = max(scored, default=-1)
    while options.once or last < (options.until or math.inf):
        for step, path in checkpoints(options.dir).items():
            if scored.get(step) != (version := _version(path)):
                scored[step] = version
                try:
                    load_checkpoint(path)
                except UserError as error:
                    if options.once:
                        raise
                    console.print(f"step {step}: {error}; trying again when it changes")
                    continue
                last = max(last, step)
                yield step, path
                break  # a run takes long: look again, to keep the order of steps
        else:  # nothing new
            if options.once:
                return
            time.sleep(options.every)


def checkpoints(folder: Path) -> dict[int, Path]:
    """Step → weights file, in the order of steps. Raises ``UserError`` if two files have the same
    step, or a step is too large."""
    files: dict[int, Path] = {}
    for path in folder.glob("[!.]*"):
        numbers = re.findall(r"\d+", path.stem)
        if path.suffix in (".safetensors", ".pt", ".pth", ".bin") and numbers:
            first = files.setdefault(int(numbers[-1]), path)
            if first != path:
                pair = f"{first.name} and {path.name} in {folder}"
                raise UserError(f"{pair} are both of step {numbers[-1]}; move one away")
            if int(numbers[-1]) >= 2**63:
                raise UserError(f"MLflow has no step {numbers[-1]}; rename {path}")
    return dict(sorted(files.items()))


def write_weights(folder: Path, step: int, state: Mapping[str, Tensor]) -> Path:
    """Write the weights of a step as ``checkpoints`` finds them; returns the file. Raises
    ``UserError`` as ``atomic_write``."""
    path = folder / f"step-{step}.safetensors"
    # safetensors refuses tensors that share memory
    tensors = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in state.items()}
    with atomic_write(path) as part:
        save_file(tensors, part)
    return path


def _version(path: Path) -> str:
    """Size and time of a file, by which it is known to have changed; '' without it."""
    try:
        status = path.stat()
    except FileNotFoundError:  # the training has removed it meanwhile
        return ""
    return f"{status.st_size}-{status.st_mtime_ns}"
